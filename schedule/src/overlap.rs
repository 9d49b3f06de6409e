//! What to do with the actions that wait, when one of the schedule's workflows runs or is about to. Pure decision.

use perdure_proto::{perdure::state::v1::ScheduleStart, temporal::api::enums::v1::ScheduleOverlapPolicy as Policy};

/// The decision about a buffer.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Decision {
    /// To be started, whatever else runs.
    pub overlapping: Vec<ScheduleStart>,
    /// To be started, alone.
    pub alone: Option<ScheduleStart>,
    /// Goes on waiting.
    pub keep: Vec<ScheduleStart>,
    /// The running workflow makes way.
    pub cancel: bool,
    pub terminate: bool,
    pub skipped: i64,
}

/// `running`: a workflow that must not be overlapped runs or is being started. `default`: of actions without a policy.
pub(crate) fn decide(buffer: Vec<ScheduleStart>, running: bool, default: Policy) -> Decision {
    let mut decision = Decision::default();
    for start in buffer {
        let policy = resolve(start.overlap(), default);
        if policy == Policy::AllowAll {
            decision.overlapping.push(start);
            continue;
        }
        if !running && decision.alone.is_none() {
            decision.alone = Some(start);
            continue;
        }
        match policy {
            Policy::BufferOne if decision.keep.is_empty() => decision.keep.push(start),
            Policy::Skip | Policy::Unspecified | Policy::BufferOne => decision.skipped += 1,
            Policy::BufferAll | Policy::AllowAll => decision.keep.push(start),
            Policy::CancelOther if running => {
                decision.cancel = true;
                decision.keep.push(start);
            }
            Policy::TerminateOther if running => {
                decision.terminate = true;
                decision.keep.push(start);
            }
            // Nothing runs yet: it takes the place of the one that was about to.
            Policy::CancelOther | Policy::TerminateOther => {
                decision.alone = Some(start);
                decision.skipped += 1;
            }
        }
    }
    decision
}

pub(crate) fn resolve(policy: Policy, default: Policy) -> Policy {
    match (policy, default) {
        (Policy::Unspecified, Policy::Unspecified) => Policy::Skip,
        (Policy::Unspecified, default) => default,
        (policy, _) => policy,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(starts: &[ScheduleStart]) -> Vec<i64> {
        starts.iter().map(|start| start.number).collect()
    }

    /// Actions 1, 2, … of these policies: what is started alone, started beside, kept; skipped, cancel, terminate.
    fn check(policies: &[Policy], running: bool, expect: (Option<i64>, &[i64], &[i64], i64, bool, bool)) {
        let buffer = (1..).zip(policies).map(|(number, policy)| {
            let overlap = *policy as i32;
            ScheduleStart { number, overlap, ..ScheduleStart::default() }
        });
        let decision = decide(buffer.collect(), running, Policy::Unspecified);
        let (alone, beside, kept, skipped, cancel, terminate) = expect;
        assert_eq!(decision.alone.as_ref().map(|start| start.number), alone, "{policies:?}");
        assert_eq!(numbers(&decision.overlapping), beside, "{policies:?}");
        assert_eq!(numbers(&decision.keep), kept, "{policies:?}");
        assert_eq!(
            (decision.skipped, decision.cancel, decision.terminate),
            (skipped, cancel, terminate),
            "{policies:?}"
        );
    }

    #[test]
    fn policies() {
        use Policy::*;
        check(&[Unspecified, Skip], false, (Some(1), &[], &[], 1, false, false));
        check(&[Skip], true, (None, &[], &[], 1, false, false));
        check(&[BufferOne; 3], false, (Some(1), &[], &[2], 1, false, false));
        check(&[BufferOne; 3], true, (None, &[], &[1], 2, false, false));
        check(&[BufferAll; 3], true, (None, &[], &[1, 2, 3], 0, false, false));
        check(&[AllowAll; 3], true, (None, &[1, 2, 3], &[], 0, false, false));
        check(&[CancelOther], true, (None, &[], &[1], 0, true, false));
        check(&[TerminateOther], true, (None, &[], &[1], 0, false, true));
        check(&[CancelOther; 3], false, (Some(3), &[], &[], 2, false, false));
        check(&[Skip, AllowAll, BufferAll], false, (Some(1), &[2], &[3], 0, false, false));
    }
}
