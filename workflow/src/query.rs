//! Queries. (W-C)
use std::collections::HashMap;
use perdure_proto::{Error, perdure::node::v1::GetQueryTask, temporal::api::{query::v1::*, workflowservice::v1::*}};
use crate::{api::{Env, Outcome}, chain::{Answered, Chain}, run::Run};
/// Queries that wait for a workflow task of this run, and answers that wait for their callers.
#[derive(Debug, Clone, Default)]
pub(crate) struct Queries {}
impl Queries {
    /// The queries that go with the workflow task that is being started, by id.
    pub fn take_for_workflow_task(&mut self) -> HashMap<String, WorkflowQuery> { HashMap::new() }
}
impl Chain {
    pub(crate) fn query(&mut self, _c: QueryWorkflowRequest, _env: &mut Env) -> Answered { Err(Error::unimplemented("QueryWorkflow")) }
    pub(crate) fn get_query_task(&mut self, _c: GetQueryTask, _env: &mut Env) -> Answered { Err(Error::unimplemented("QueryWorkflow")) }
}
impl Run {
    /// Results that came with a workflow task's completion.
    pub(crate) fn answer_queries(&mut self, _results: HashMap<String, WorkflowQueryResult>) {}
    pub(crate) fn check_query(&mut self, _query_id: u64) -> Option<Outcome> { None }
}
