//! Sets of compatible build ids, the oldest form of worker versioning. The last set is the queue's default, and the last
//! build id of a set is the one whose workers get the tasks of all of it.

use perdure_proto::{
    Error,
    build_ids::find_in_sets,
    perdure::state::v1::{BuildIdSet, BuildIds},
    temporal::api::workflowservice::v1::{
        UpdateWorkerBuildIdCompatibilityRequest,
        update_worker_build_id_compatibility_request::{AddNewCompatibleVersion, MergeSets, Operation},
    },
};
use perdure_types::{Limits, Timestamp};

/// True if that changes anything. On error it may have changed something, too: the caller keeps the state of before.
pub(crate) fn update(
    build_ids: &mut BuildIds,
    request: UpdateWorkerBuildIdCompatibilityRequest,
    now: Timestamp,
    limits: &Limits,
) -> Result<bool, Error> {
    let operation = request.operation.ok_or_else(|| Error::invalid_argument("the request names no operation"))?;
    let sets = &mut build_ids.sets;
    let changed = match operation {
        Operation::AddNewBuildIdInNewDefaultSet(new) => add_set(sets, new, now)?,
        Operation::AddNewCompatibleBuildId(add) => add_compatible(sets, add, now)?,
        Operation::PromoteSetByBuildId(build_id) => {
            let (set, _) = find(sets, &build_id, "targeted version")?;
            let changed = set + 1 != sets.len();
            if changed {
                make_default(sets, set, now);
            }
            changed
        }
        Operation::PromoteBuildIdWithinSet(build_id) => {
            let (set, place) = find(sets, &build_id, "targeted version")?;
            let members = &mut sets[set].build_ids;
            let changed = place + 1 != members.len();
            members[place..].rotate_left(1);
            changed
        }
        Operation::MergeSets(merge) => merge_sets(sets, &merge)?,
    };
    check_limits(sets, limits)?;
    Ok(changed)
}

fn find(sets: &[BuildIdSet], build_id: &str, what: &str) -> Result<(usize, usize), Error> {
    find_in_sets(sets, build_id).ok_or_else(|| Error::not_found(format!("{what} {build_id} not found")))
}

fn add_set(sets: &mut Vec<BuildIdSet>, new: String, now: Timestamp) -> Result<bool, Error> {
    if sets.last().is_some_and(|set| set.build_ids == [new.as_str()]) {
        return Ok(false);
    }
    if find_in_sets(sets, &new).is_some() {
        return Err(Error::invalid_argument(format!("version {new} already exists")));
    }
    sets.push(BuildIdSet { build_ids: vec![new], default_since_ns: now.as_nanos() });
    Ok(true)
}

fn add_compatible(sets: &mut [BuildIdSet], add: AddNewCompatibleVersion, now: Timestamp) -> Result<bool, Error> {
    let (new, old) = (add.new_build_id, add.existing_compatible_build_id);
    let (set, _) = find(sets, &old, "targeted compatible_version")?;
    let Some((known, place)) = find_in_sets(sets, &new) else {
        sets[set].build_ids.push(new);
        if add.make_set_default {
            make_default(sets, set, now);
        }
        return Ok(true);
    };
    let refuse = |message: String| Err(Error::invalid_argument(message));
    if known != set {
        return refuse(format!(
            "{new} requested to be made compatible with {old} but both versions exist and are incompatible"
        ));
    }
    if add.make_set_default && set + 1 != sets.len() {
        return refuse(format!("version {new} already exists and is not default for queue"));
    }
    if place + 1 != sets[set].build_ids.len() {
        return refuse(format!("version {new} already exists and is not default in set"));
    }
    Ok(false)
}

fn make_default(sets: &mut [BuildIdSet], set: usize, now: Timestamp) {
    sets[set].default_since_ns = now.as_nanos();
    sets[set..].rotate_left(1);
}

/// The default of the primary set is that of both. The queue's default stays what it is.
fn merge_sets(sets: &mut Vec<BuildIdSet>, merge: &MergeSets) -> Result<bool, Error> {
    let (primary, _) = find(sets, &merge.primary_set_build_id, "targeted primary version")?;
    let (secondary, _) = find(sets, &merge.secondary_set_build_id, "targeted secondary version")?;
    if primary == secondary {
        return Ok(false);
    }
    let mut members = sets[secondary].build_ids.clone();
    members.extend(std::mem::take(&mut sets[primary].build_ids));
    let (earlier, later) = (primary.min(secondary), primary.max(secondary));
    sets[later].build_ids = members;
    sets.remove(earlier);
    Ok(true)
}

fn check_limits(sets: &[BuildIdSet], limits: &Limits) -> Result<(), Error> {
    let build_ids: usize = sets.iter().map(|set| set.build_ids.len()).sum();
    for (what, count, most) in [
        ("compatible version sets", sets.len(), limits.version_sets_in_queue),
        ("build IDs", build_ids, limits.build_ids_in_queue),
    ] {
        if most > 0 && count as i64 > most {
            return Err(Error::failed_precondition(format!(
                "update would exceed number of {what} permitted in namespace dynamic config ({count}/{most})"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use perdure_proto::Code;

    use super::*;

    struct Queue(BuildIds);

    impl Queue {
        fn new(defaults: &[&str]) -> Self {
            let mut queue = Self(BuildIds::default());
            for build_id in defaults {
                queue.send(Operation::AddNewBuildIdInNewDefaultSet((*build_id).into())).expect("added");
            }
            queue
        }

        fn send(&mut self, operation: Operation) -> Result<bool, Error> {
            let request = UpdateWorkerBuildIdCompatibilityRequest { operation: Some(operation), ..Default::default() };
            update(&mut self.0, request, Timestamp(1), &Limits::default())
        }

        fn compatible(&mut self, new: &str, old: &str, make_set_default: bool) -> Result<bool, Error> {
            let (new_build_id, existing_compatible_build_id) = (new.into(), old.into());
            let add = AddNewCompatibleVersion { new_build_id, existing_compatible_build_id, make_set_default };
            self.send(Operation::AddNewCompatibleBuildId(add))
        }

        fn text(&self) -> String {
            self.0.sets.iter().map(|set| set.build_ids.join(",")).collect::<Vec<_>>().join(" | ")
        }
    }

    fn refused(result: Result<bool, Error>) -> Code {
        result.expect_err("refused").grpc_code()
    }

    #[test]
    fn sets_grow_and_are_promoted() {
        let mut queue = Queue::new(&["1", "2", "3"]);
        assert!(queue.compatible("1.1", "1", false).expect("added"));
        assert_eq!(queue.text(), "1,1.1 | 2 | 3");
        assert!(!queue.compatible("1.1", "1", false).expect("done already"));
        assert!(queue.send(Operation::PromoteSetByBuildId("1".into())).expect("promoted"));
        assert_eq!(queue.text(), "2 | 3 | 1,1.1");
        assert!(queue.send(Operation::PromoteBuildIdWithinSet("1".into())).expect("promoted"));
        assert_eq!(queue.text(), "2 | 3 | 1.1,1");
        assert!(queue.compatible("2.1", "2", true).expect("added"));
        assert_eq!(queue.text(), "3 | 1.1,1 | 2,2.1");
        assert!(!queue.send(Operation::PromoteSetByBuildId("2".into())).expect("is the default"));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let mut queue = Queue::new(&["1", "2"]);
        assert!(!queue.send(Operation::AddNewBuildIdInNewDefaultSet("2".into())).expect("done already"));
        assert_eq!(refused(queue.send(Operation::AddNewBuildIdInNewDefaultSet("1".into()))), Code::InvalidArgument);
        assert_eq!(refused(queue.compatible("3", "9", false)), Code::NotFound);
        assert_eq!(refused(queue.compatible("2", "1", false)), Code::InvalidArgument);
        assert_eq!(refused(queue.compatible("1", "1", true)), Code::InvalidArgument);
        assert_eq!(refused(queue.send(Operation::PromoteSetByBuildId("9".into()))), Code::NotFound);
    }

    #[test]
    fn a_merged_set_has_the_default_of_the_primary_one() {
        let mut queue = Queue::new(&["1", "2", "3"]);
        let merge = |primary: &str, secondary: &str| {
            Operation::MergeSets(MergeSets {
                primary_set_build_id: primary.into(),
                secondary_set_build_id: secondary.into(),
            })
        };
        assert!(queue.send(merge("1", "3")).expect("merged"));
        assert_eq!(queue.text(), "2 | 3,1");
        assert!(!queue.send(merge("1", "3")).expect("done already"));
        assert_eq!(refused(queue.send(merge("1", "9"))), Code::NotFound);
    }

    #[test]
    fn there_are_so_many_sets_and_no_more() {
        let names: Vec<String> = (0..10).map(|i| i.to_string()).collect();
        let mut queue = Queue::new(&names.iter().map(String::as_str).collect::<Vec<_>>());
        let one_more = queue.send(Operation::AddNewBuildIdInNewDefaultSet("x".into()));
        assert_eq!(refused(one_more), Code::FailedPrecondition);
    }
}
