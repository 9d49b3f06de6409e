//! Rules of a namespace: an activity that one means is paused when a worker would begin its first attempt, or when an
//! operator triggers the rule.
//!
//! A rule looks at the run and at the activity by queries, which are read outside: see [`NamespaceView::rule_matches`].

use perdure_proto::{
    Error,
    perdure::{
        node::v1::{TriggerRule, workflow_reply},
        state::v1::PauseInfo,
    },
    temporal::api::{
        common::v1::{Payload, SearchAttributes},
        enums::v1::IndexedValueType,
        rules::v1::{WorkflowRuleSpec, workflow_rule_action::Variant},
        workflowservice::v1::TriggerWorkflowRuleResponse,
    },
};
use perdure_types::Timestamp;

use crate::{
    activity::Activity,
    api::{Env, NamespaceView},
    chain::{Answered, Chain, reply},
    run::Run,
};

impl Chain {
    pub(crate) fn trigger_rule(&mut self, command: TriggerRule, env: &mut Env) -> Answered {
        let rule = command.rule.ok_or_else(|| Error::invalid_argument("Rule is not set on request."))?;
        let run = self.open_run(&command.run_id)?;
        let ids: Vec<i64> = run.activities.iter().filter(|(_, a)| !a.info.paused).map(|(id, _)| *id).collect();
        let mut applied = false;
        for id in ids {
            applied |= run.apply_rule(env, id, &rule).map_err(Error::invalid_argument)?;
        }
        if applied {
            run.show_what_is_paused();
        }
        reply(workflow_reply::Reply::TriggerRule(TriggerWorkflowRuleResponse { applied }))
    }
}

impl Run {
    /// The activity's first attempt is about to begin. True: a rule has paused it instead.
    pub(crate) fn is_held_by_rule(&mut self, env: &Env, id: i64) -> bool {
        if self.activities.get(&id).is_none_or(|activity| activity.info.attempt > 1) {
            return false;
        }
        let rules = env.namespaces.rules(&self.key.namespace_id);
        let mut held = false;
        for spec in rules.iter().filter_map(|rule| rule.spec.as_ref()) {
            let expires = Timestamp::from_proto(spec.expiration_time.as_ref());
            if spec.expiration_time.is_some() && expires <= env.now {
                continue;
            }
            // Rules are checked when they are made: one that cannot be read means nothing.
            held |= self.apply_rule(env, id, spec).unwrap_or(false);
            if held {
                break;
            }
        }
        if held {
            self.show_what_is_paused();
        }
        held
    }

    /// Does what the rule says if it means the activity.
    fn apply_rule(&mut self, env: &Env, id: i64, rule: &WorkflowRuleSpec) -> Result<bool, String> {
        let pauses = rule.actions.iter().any(|action| matches!(action.variant, Some(Variant::ActivityPause(_))));
        let Some(activity) = self.activities.get(&id).filter(|activity| pauses && !activity.info.paused) else {
            return Ok(false);
        };
        if !matches(env.namespaces, rule, self, activity)? {
            return Ok(false);
        }
        if let Some(activity) = self.activities.get_mut(&id) {
            if !activity.is_started() {
                activity.info.stamp += 1;
            }
            activity.info.paused = true;
            activity.info.pause = Some(Box::new(PauseInfo {
                time_ns: env.now.as_nanos(),
                rule_id: rule.id.clone(),
                ..PauseInfo::default()
            }));
        }
        Ok(true)
    }
}

fn matches(
    namespaces: &dyn NamespaceView,
    rule: &WorkflowRuleSpec,
    run: &Run,
    activity: &Activity,
) -> Result<bool, String> {
    namespaces.rule_matches(rule, &run.execution_info(), &facts(activity))
}

/// What the predicate of a rule may name of an activity, as search attributes.
fn facts(activity: &Activity) -> SearchAttributes {
    let info = &activity.info;
    let status = match (info.paused, activity.is_started()) {
        (true, _) => "Paused",
        (false, true) => "Started",
        (false, false) => "Scheduled",
    };
    let kind = activity.scheduled().activity_type.as_ref().map_or("", |kind| kind.name.as_str());
    let failure = info.last_failure.as_ref().map_or("", |failure| failure.message.as_str());
    let attempt = i64::from(info.attempt);
    let backoff_s = info.current_retry_interval_ns / 1_000_000_000;
    let fields = [
        ("ActivityId", text(&info.activity_id)),
        ("ActivityType", text(kind)),
        ("TaskQueue", text(activity.task_queue())),
        ("ActivityStatus", text(status)),
        ("Status", text(status)),
        ("LastFailure", text(failure)),
        ("ActivityAttempt", number(attempt)),
        ("Attempts", number(attempt)),
        ("BackoffInterval", number(backoff_s)),
    ];
    SearchAttributes { indexed_fields: fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect() }
}

fn text(value: &str) -> Payload {
    payload(IndexedValueType::Keyword, format!("\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\"")))
}

fn number(value: i64) -> Payload {
    payload(IndexedValueType::Int, value.to_string())
}

fn payload(kind: IndexedValueType, json: String) -> Payload {
    let kind = if kind == IndexedValueType::Int { "Int" } else { "Keyword" };
    let metadata = [("encoding", "json/plain"), ("type", kind)];
    Payload {
        metadata: metadata.into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect(),
        data: json.into(),
        ..Payload::default()
    }
}
