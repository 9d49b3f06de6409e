//! CreateWorkflowRule, DescribeWorkflowRule, DeleteWorkflowRule, ListWorkflowRules and TriggerWorkflowRule. Rules are kept
//! with their namespace; the owners of workflows follow them.

use perdure_proto::{
    Error,
    perdure::{
        node::v1::{TriggerRule, workflow_call, workflow_reply},
        state::v1::NamespaceRecord,
    },
    temporal::api::{
        rules::v1::{WorkflowRule, WorkflowRuleSpec},
        workflowservice::v1::{
            CreateWorkflowRuleRequest, CreateWorkflowRuleResponse, DeleteWorkflowRuleRequest,
            DeleteWorkflowRuleResponse, DescribeWorkflowRuleRequest, DescribeWorkflowRuleResponse,
            ListWorkflowRulesRequest, ListWorkflowRulesResponse, TriggerWorkflowRuleRequest,
            TriggerWorkflowRuleResponse, trigger_workflow_rule_request::Rule,
        },
    },
};
use perdure_types::Timestamp;

use super::namespace_write::change;
use crate::{call::Call, validate};

/// Temporal's `frontend.maxWorkflowRulesPerNamespace`.
const MOST_RULES: usize = 10;

pub(crate) async fn create_workflow_rule(
    call: &Call<'_>,
    request: CreateWorkflowRuleRequest,
) -> Result<CreateWorkflowRuleResponse, Error> {
    let Some(spec) = request.spec else {
        return Err(Error::invalid_argument("Rule Specification is not set."));
    };
    rule_id(&spec.id)?;
    if validate::is_too_long(&spec.id, call.limits()) {
        return Err(Error::invalid_argument("Workflow Rule Id length exceeds limit."));
    }
    check(&spec)?;
    let now = call.frontend().rows()?.now();
    let rule = WorkflowRule {
        create_time: now.to_proto(),
        spec: Some(spec),
        created_by_identity: request.identity,
        description: request.description,
    };
    change(call, &request.namespace, |record| add(record, rule.clone(), now)).await?;
    Ok(CreateWorkflowRuleResponse { rule: Some(rule), job_id: String::new() })
}

fn add(record: &mut NamespaceRecord, rule: WorkflowRule, now: Timestamp) -> Result<(), Error> {
    let rules = &mut record.workflow_rules;
    if rules.iter().any(|known| id_of(known) == id_of(&rule)) {
        return Err(Error::invalid_argument("Workflow Rule with this ID already exists."));
    }
    if rules.len() >= MOST_RULES {
        // Those that have expired mean nothing any more.
        rules.retain(|rule| {
            let expires = rule.spec.as_ref().and_then(|spec| spec.expiration_time.as_ref());
            expires.is_none_or(|at| Timestamp::from_proto(Some(at)) > now)
        });
    }
    if rules.len() >= MOST_RULES {
        return Err(Error::invalid_argument(format!("Workflow Rule limit exceeded. Max: {MOST_RULES}")));
    }
    rules.push(rule);
    Ok(())
}

pub(crate) async fn describe_workflow_rule(
    call: &Call<'_>,
    request: DescribeWorkflowRuleRequest,
) -> Result<DescribeWorkflowRuleResponse, Error> {
    rule_id(&request.rule_id)?;
    let rules = rules(call, &request.namespace).await?;
    let rule = rules.into_iter().find(|rule| id_of(rule) == request.rule_id);
    Ok(DescribeWorkflowRuleResponse { rule: Some(rule.ok_or_else(unknown)?) })
}

pub(crate) async fn delete_workflow_rule(
    call: &Call<'_>,
    request: DeleteWorkflowRuleRequest,
) -> Result<DeleteWorkflowRuleResponse, Error> {
    rule_id(&request.rule_id)?;
    change(call, &request.namespace, |record| {
        let before = record.workflow_rules.len();
        record.workflow_rules.retain(|rule| id_of(rule) != request.rule_id);
        if record.workflow_rules.len() == before { Err(unknown()) } else { Ok(()) }
    })
    .await?;
    Ok(DeleteWorkflowRuleResponse::default())
}

pub(crate) async fn list_workflow_rules(
    call: &Call<'_>,
    request: ListWorkflowRulesRequest,
) -> Result<ListWorkflowRulesResponse, Error> {
    let rules = rules(call, &request.namespace).await?;
    Ok(ListWorkflowRulesResponse { rules, next_page_token: bytes::Bytes::new() })
}

pub(crate) async fn trigger_workflow_rule(
    call: &Call<'_>,
    request: TriggerWorkflowRuleRequest,
) -> Result<TriggerWorkflowRuleResponse, Error> {
    let namespace = call.namespace(&request.namespace)?;
    let execution = validate::execution(request.execution.as_ref(), call.limits())?.clone();
    let rule = match request.rule {
        Some(Rule::Spec(spec)) => spec,
        Some(Rule::Id(id)) => {
            rule_id(&id)?;
            let rules = rules(call, &request.namespace).await?;
            rules.into_iter().filter_map(|rule| rule.spec).find(|spec| spec.id == id).ok_or_else(unknown)?
        }
        None => return Err(Error::invalid_argument("Rule Specification is not set.")),
    };
    check(&rule)?;
    let command = TriggerRule { run_id: execution.run_id, identity: request.identity, rule: Some(rule) };
    let command = workflow_call::Command::TriggerRule(Box::new(command));
    match call.workflow(namespace.id(), &execution.workflow_id, command).await? {
        workflow_reply::Reply::TriggerRule(reply) => Ok(reply),
        _ => Err(call.unexpected_reply()),
    }
}

/// As they are in the store: another node may have changed them a moment ago.
async fn rules(call: &Call<'_>, namespace: &str) -> Result<Vec<WorkflowRule>, Error> {
    call.frontend().namespaces().refresh().await?;
    Ok(call.namespace(namespace)?.record.workflow_rules.clone())
}

fn check(spec: &WorkflowRuleSpec) -> Result<(), Error> {
    perdure_visibility::check_rule(spec).map_err(Error::invalid_argument)
}

fn id_of(rule: &WorkflowRule) -> &str {
    rule.spec.as_ref().map_or("", |spec| spec.id.as_str())
}

fn rule_id(id: &str) -> Result<(), Error> {
    if id.is_empty() { Err(Error::invalid_argument("Workflow Rule ID is not set.")) } else { Ok(()) }
}

fn unknown() -> Error {
    Error::invalid_argument("Workflow Rule with this ID not Found.")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(id: String, expires_s: i64) -> WorkflowRule {
        let expiration_time = (expires_s > 0).then_some(prost_types::Timestamp { seconds: expires_s, nanos: 0 });
        let spec = WorkflowRuleSpec { id, expiration_time, ..Default::default() };
        WorkflowRule { spec: Some(spec), ..Default::default() }
    }

    #[test]
    fn rules_are_few_and_expired_ones_make_room() {
        let mut record = NamespaceRecord::default();
        let now = Timestamp(100 * 1_000_000_000);
        for i in 0..MOST_RULES {
            add(&mut record, rule(format!("rule-{i}"), 0), now).expect("there is room");
        }
        assert!(add(&mut record, rule("one-more".into(), 0), now).is_err());
        record.workflow_rules[3] = rule("rule-3".into(), 99);
        add(&mut record, rule("one-more".into(), 0), now).expect("one has expired");
        assert_eq!(record.workflow_rules.len(), MOST_RULES);
        let twice = add(&mut record, rule("one-more".into(), 0), now).expect_err("known");
        assert_eq!(twice.message, "Workflow Rule with this ID already exists.");
    }
}
