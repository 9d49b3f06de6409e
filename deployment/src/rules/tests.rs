use perdure_proto::temporal::api::workflowservice::v1::{
    UpdateWorkerVersioningRulesRequest,
    update_worker_versioning_rules_request::{
        AddCompatibleBuildIdRedirectRule, DeleteCompatibleBuildIdRedirectRule, ReplaceCompatibleBuildIdRedirectRule,
    },
};

use super::*;

#[derive(Default)]
struct Queue {
    build_ids: BuildIds,
    polled: bool,
}

impl Queue {
    /// As the entity does it: on error nothing has changed.
    fn send(&mut self, operation: Operation) -> Result<(), Code> {
        let conflict_token = self.build_ids.revision.to_be_bytes().to_vec().into();
        let request =
            UpdateWorkerVersioningRulesRequest { conflict_token, operation: Some(operation), ..Default::default() };
        let command = UpdateVersioningRules { request: Some(request), has_recent_poller: self.polled };
        let mut changed = self.build_ids.clone();
        update(&mut changed, command, Timestamp(1), &Limits::default()).map_err(|error| error.grpc_code())?;
        changed.revision += 1;
        self.build_ids = changed;
        Ok(())
    }

    fn insert(&mut self, index: i32, target: &str, percent: Option<f32>) -> Result<(), Code> {
        let rule = Some(assignment(target, percent));
        self.send(Operation::InsertAssignmentRule(InsertBuildIdAssignmentRule { rule_index: index, rule }))
    }

    fn replace(&mut self, index: i32, target: &str, percent: Option<f32>, force: bool) -> Result<(), Code> {
        let rule = Some(assignment(target, percent));
        self.send(Operation::ReplaceAssignmentRule(ReplaceBuildIdAssignmentRule { rule_index: index, rule, force }))
    }

    fn delete(&mut self, index: i32, force: bool) -> Result<(), Code> {
        self.send(Operation::DeleteAssignmentRule(DeleteBuildIdAssignmentRule { rule_index: index, force }))
    }

    fn redirect(&mut self, source: &str, target: &str) -> Result<(), Code> {
        let rule = Some(redirection(source, target));
        self.send(Operation::AddCompatibleRedirectRule(AddCompatibleBuildIdRedirectRule { rule }))
    }

    fn commit(&mut self, target: &str, force: bool) -> Result<(), Code> {
        self.send(Operation::CommitBuildId(CommitBuildId { target_build_id: target.into(), force }))
    }

    fn text(&self) -> String {
        let rules = self.build_ids.assignment_rules.iter().filter_map(|rule| rule.rule.as_ref());
        let texts: Vec<_> = rules.map(|rule| format!("{}@{}", rule.target_build_id, ramp(rule))).collect();
        texts.join(" ")
    }
}

fn assignment(target: &str, percent: Option<f32>) -> BuildIdAssignmentRule {
    let ramp = percent.map(|ramp_percentage| Ramp::PercentageRamp(RampByPercentage { ramp_percentage }));
    BuildIdAssignmentRule { target_build_id: target.into(), ramp }
}

fn redirection(source: &str, target: &str) -> CompatibleBuildIdRedirectRule {
    CompatibleBuildIdRedirectRule { source_build_id: source.into(), target_build_id: target.into() }
}

#[test]
fn assignment_rules_are_inserted_replaced_and_deleted_by_their_place() {
    let mut queue = Queue::default();
    queue.insert(0, "1", None).expect("inserted");
    queue.insert(0, "2", Some(45.0)).expect("inserted");
    queue.insert(9, "3", None).expect("at the end");
    assert_eq!(queue.text(), "2@45 1@100 3@100");
    queue.replace(1, "1.1", None, false).expect("replaced");
    queue.delete(2, false).expect("deleted");
    assert_eq!(queue.text(), "2@45 1.1@100");
    assert_eq!(queue.insert(-1, "4", None), Err(Code::InvalidArgument));
    assert_eq!(queue.insert(0, "4", Some(101.0)), Err(Code::InvalidArgument));
    assert_eq!(queue.replace(2, "4", None, true), Err(Code::InvalidArgument));
    assert_eq!(queue.delete(-1, true), Err(Code::InvalidArgument));
}

#[test]
fn the_last_full_ramp_goes_by_force_only() {
    let mut queue = Queue::default();
    queue.insert(0, "1", None).expect("inserted");
    assert_eq!(queue.replace(0, "2", Some(45.0), false), Err(Code::FailedPrecondition));
    assert_eq!(queue.delete(0, false), Err(Code::FailedPrecondition));
    queue.replace(0, "2", Some(45.0), true).expect("forced");
    assert_eq!(queue.delete(0, false), Err(Code::FailedPrecondition), "there was one before");
    queue.delete(0, true).expect("forced");
    assert_eq!(queue.text(), "");
    let mut partial = Queue::default();
    partial.insert(0, "1", Some(1.0)).expect("inserted");
    partial.delete(0, false).expect("there never was one");
}

#[test]
fn redirects_make_no_ring_and_each_source_has_one() {
    let mut queue = Queue::default();
    queue.redirect("1", "2").expect("added");
    queue.redirect("2", "3").expect("added");
    assert_eq!(queue.redirect("3", "1"), Err(Code::FailedPrecondition));
    assert_eq!(queue.redirect("4", "4"), Err(Code::FailedPrecondition));
    assert_eq!(queue.redirect("1", "3"), Err(Code::AlreadyExists));
    assert_eq!(queue.redirect("4", ""), Err(Code::InvalidArgument));
    let replace = |source, target| {
        let rule = Some(redirection(source, target));
        Operation::ReplaceCompatibleRedirectRule(ReplaceCompatibleBuildIdRedirectRule { rule })
    };
    queue.send(replace("1", "3")).expect("replaced");
    assert_eq!(build_ids::redirect(&queue.build_ids, "1"), "3");
    assert_eq!(queue.send(replace("9", "3")), Err(Code::NotFound));
    let delete = |source: &str| {
        Operation::DeleteCompatibleRedirectRule(DeleteCompatibleBuildIdRedirectRule { source_build_id: source.into() })
    };
    queue.send(delete("1")).expect("deleted");
    assert_eq!(queue.send(delete("1")), Err(Code::NotFound));
    assert_eq!(queue.build_ids.deleted_redirect_rules.len(), 2);
}

#[test]
fn a_ramp_and_a_redirect_do_not_go_together() {
    let mut queue = Queue::default();
    queue.insert(0, "1", Some(50.0)).expect("inserted");
    assert_eq!(queue.redirect("1", "2"), Err(Code::FailedPrecondition));
    queue.redirect("3", "4").expect("added");
    assert_eq!(queue.insert(0, "3", Some(50.0)), Err(Code::FailedPrecondition));
    queue.insert(0, "3", None).expect("a full ramp may be redirected");
}

#[test]
fn what_is_in_a_set_has_no_rules() {
    let mut queue = Queue::default();
    queue.build_ids.sets =
        vec![perdure_proto::perdure::state::v1::BuildIdSet { build_ids: vec!["1".into()], default_since_ns: 0 }];
    assert_eq!(queue.insert(0, "1", None), Err(Code::FailedPrecondition));
    assert_eq!(queue.redirect("1", "2"), Err(Code::FailedPrecondition));
    assert_eq!(queue.redirect("2", "1"), Err(Code::FailedPrecondition));
    assert_eq!(queue.commit("1", true), Err(Code::FailedPrecondition));
}

#[test]
fn a_commit_wants_workers_and_leaves_one_full_ramp() {
    let mut queue = Queue::default();
    queue.insert(0, "1", None).expect("inserted");
    queue.insert(0, "2", Some(45.0)).expect("inserted");
    queue.insert(0, "3", Some(10.0)).expect("inserted");
    assert_eq!(queue.commit("2", false), Err(Code::FailedPrecondition));
    queue.polled = true;
    queue.commit("2", false).expect("committed");
    assert_eq!(queue.text(), "3@10 2@100");
}

#[test]
fn limits_hold() {
    let mut queue = Queue::default();
    for i in 0..50 {
        queue.redirect(&format!("s{i}"), "t").expect("added");
    }
    assert_eq!(queue.redirect("s50", "t"), Err(Code::FailedPrecondition));
    for i in 0..100 {
        queue.insert(0, &format!("{i}"), None).expect("inserted");
    }
    assert_eq!(queue.insert(0, "x", None), Err(Code::FailedPrecondition));
}

#[test]
fn who_has_not_seen_the_last_change_may_not_make_the_next() {
    let mut build_ids = BuildIds { revision: 3, ..BuildIds::default() };
    let request = UpdateWorkerVersioningRulesRequest {
        conflict_token: 2i64.to_be_bytes().to_vec().into(),
        operation: Some(Operation::CommitBuildId(CommitBuildId { target_build_id: "1".into(), force: true })),
        ..Default::default()
    };
    let command = UpdateVersioningRules { request: Some(request), has_recent_poller: false };
    let refused = update(&mut build_ids, command, Timestamp(1), &Limits::default()).expect_err("refused");
    assert_eq!(refused.grpc_code(), Code::FailedPrecondition);
}
