//! The queries of workflow rules: one about the run, as lists take it, and one about an activity of it.

use perdure_proto::temporal::api::{
    common::v1::SearchAttributes,
    rules::v1::{WorkflowRuleSpec, workflow_rule_spec::Trigger},
    workflow::v1::WorkflowExecutionInfo,
};

use crate::{
    attributes::{Attributes, Kind},
    query::Query,
    row::Row,
};

/// What a predicate may name. Some have two names: the API's comments say one, Temporal's server knows the other.
const OF_ACTIVITY: [(&str, Kind); 9] = [
    ("ActivityAttempt", Kind::Int),
    ("ActivityId", Kind::Keyword),
    ("ActivityStatus", Kind::Keyword),
    ("ActivityType", Kind::Keyword),
    ("Attempts", Kind::Int),
    ("BackoffInterval", Kind::Int),
    ("LastFailure", Kind::Keyword),
    ("Status", Kind::Keyword),
    ("TaskQueue", Kind::Keyword),
];

/// Says what is wrong with a rule.
pub fn check_rule(rule: &WorkflowRuleSpec) -> Result<(), String> {
    if rule.actions.iter().all(|action| action.variant.is_none()) {
        return Err("Workflow Rule has no action.".to_owned());
    }
    of_run(rule)?;
    of_activity(rule).map(drop)
}

/// Whether a rule means this activity of this run. `activity`: what a predicate may name, as search attributes.
pub fn rule_matches(
    rule: &WorkflowRuleSpec,
    run: &WorkflowExecutionInfo,
    activity: &SearchAttributes,
) -> Result<bool, String> {
    let Some(predicate) = of_activity(rule)? else { return Ok(false) };
    if !of_run(rule)?.admits(&Row { info: run.clone() }) {
        return Ok(false);
    }
    let facts = WorkflowExecutionInfo { search_attributes: Some(activity.clone()), ..Default::default() };
    Ok(predicate.admits(&Row { info: facts }))
}

fn of_run(rule: &WorkflowRuleSpec) -> Result<Query, String> {
    parse(&rule.visibility_query, &Attributes::default())
}

/// `None`: the rule has no trigger.
fn of_activity(rule: &WorkflowRuleSpec) -> Result<Option<Query>, String> {
    match &rule.trigger {
        Some(Trigger::ActivityStart(start)) => parse(&start.predicate, &Attributes::only(OF_ACTIVITY)).map(Some),
        None => Ok(None),
    }
}

fn parse(text: &str, attributes: &Attributes) -> Result<Query, String> {
    let text = text.trim();
    let filter = match text.get(..6) {
        Some(word) if word.eq_ignore_ascii_case("where ") => &text[6..],
        _ => text,
    };
    let query = Query::parse(filter, attributes).map_err(|error| error.to_string())?;
    query.check_list().map_err(|error| error.to_string())?;
    Ok(query)
}

#[cfg(test)]
mod tests {
    use perdure_proto::temporal::api::{
        common::v1::{Payload, WorkflowType},
        rules::v1::{
            WorkflowRuleAction,
            workflow_rule_action::{ActionActivityPause, Variant},
            workflow_rule_spec::ActivityStartingTrigger,
        },
    };

    use super::*;

    fn rule(visibility_query: &str, predicate: &str) -> WorkflowRuleSpec {
        WorkflowRuleSpec {
            trigger: Some(Trigger::ActivityStart(ActivityStartingTrigger { predicate: predicate.to_owned() })),
            visibility_query: visibility_query.to_owned(),
            actions: vec![WorkflowRuleAction { variant: Some(Variant::ActivityPause(ActionActivityPause {})) }],
            ..Default::default()
        }
    }

    fn matches(visibility_query: &str, predicate: &str) -> Result<bool, String> {
        let run = WorkflowExecutionInfo {
            r#type: Some(WorkflowType { name: "Order".to_owned() }),
            status: 1,
            ..Default::default()
        };
        let value = |kind: &str, json: &str| Payload {
            metadata: [("encoding".to_owned(), "json/plain".into()), ("type".to_owned(), kind.to_owned().into())]
                .into(),
            data: json.to_owned().into(),
            ..Default::default()
        };
        let activity = SearchAttributes {
            indexed_fields: [
                ("ActivityType".to_owned(), value("Keyword", "\"charge\"")),
                ("ActivityAttempt".to_owned(), value("Int", "3")),
            ]
            .into(),
        };
        rule_matches(&rule(visibility_query, predicate), &run, &activity)
    }

    #[test]
    fn both_queries_must_hold() {
        assert_eq!(matches("", "ActivityType = 'charge'"), Ok(true));
        assert_eq!(
            matches("WorkflowType = 'Order'", "WHERE ActivityType = 'charge' AND ActivityAttempt > 2"),
            Ok(true)
        );
        assert_eq!(matches("WorkflowType = 'Other'", "ActivityType = 'charge'"), Ok(false));
        assert_eq!(matches("ExecutionStatus = 'Running'", "ActivityAttempt BETWEEN 4 AND 9"), Ok(false));
    }

    #[test]
    fn nonsense_is_told() {
        assert!(matches("", "NoSuch = 'x'").is_err());
        assert!(check_rule(&rule("WorkflowType =", "")).is_err());
        assert!(check_rule(&WorkflowRuleSpec { actions: Vec::new(), ..rule("", "") }).is_err());
        assert_eq!(check_rule(&rule("", "")), Ok(()));
    }
}
