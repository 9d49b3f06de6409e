//! StartNexusOperationExecution: what becomes of an id that is in use.

use perdure_proto::{
    Error,
    perdure::{
        nexus::v1::{OperationReply, StartOperation, operation_reply},
        node::v1::workflow_reply,
        state::v1::NexusOperationState,
    },
    temporal::api::{
        enums::v1::{
            NexusOperationExecutionStatus as Status, NexusOperationIdConflictPolicy as ConflictPolicy,
            NexusOperationIdReusePolicy as ReusePolicy,
        },
        workflowservice::v1::{StartNexusOperationExecutionRequest, StartNexusOperationExecutionResponse},
    },
};
use perdure_types::ChainKey;
use perdure_workflow::{Callbacks, Env};

use crate::run::Run;

/// What has callbacks, in texts.
const HOLDER: &str = "a Nexus operation";

/// `current`: the last run of the id, open or closed. True: the answer is a run that this very request has started, now or
/// before.
pub(crate) fn start(
    key: &ChainKey,
    current: Option<Run>,
    command: StartOperation,
    env: &mut Env,
) -> Result<(Run, bool), Error> {
    let request = command.request.unwrap_or_default();
    let Some(mut run) = current else { return Ok((begin(key, request, command.endpoint_id, env)?, true)) };
    let same = run.request().request_id == request.request_id;
    if same || run.state.attached_request_ids.contains(&request.request_id) {
        return Ok((run, same));
    }
    let refused = || Error::nexus_operation_already_started(&run.request().request_id, &run.run_id);
    if run.is_open() {
        if request.id_conflict_policy() != ConflictPolicy::UseExisting {
            return Err(refused());
        }
        attach(&mut run, &request, env)?;
        return Ok((run, false));
    }
    match request.id_reuse_policy() {
        ReusePolicy::RejectDuplicate => return Err(refused()),
        ReusePolicy::AllowDuplicateFailedOnly if run.status() == Status::Completed => return Err(refused()),
        ReusePolicy::AllowDuplicateFailedOnly | ReusePolicy::AllowDuplicate | ReusePolicy::Unspecified => {}
    }
    Ok((begin(key, request, command.endpoint_id, env)?, true))
}

fn attach(run: &mut Run, request: &StartNexusOperationExecutionRequest, env: &Env) -> Result<(), Error> {
    let Some(options) = &request.on_conflict_options else { return Ok(()) };
    if options.attach_completion_callbacks {
        let from = (request.request_id.as_str(), request.completion_callbacks.as_slice());
        Callbacks::attach(&mut run.state.callbacks, from, HOLDER, env)?;
    }
    if options.attach_links {
        run.state.links.extend(request.links.iter().cloned());
    }
    if options.attach_request_id || options.attach_links {
        run.state.attached_request_ids.push(request.request_id.clone());
    }
    Ok(())
}

fn begin(
    key: &ChainKey,
    mut request: StartNexusOperationExecutionRequest,
    endpoint_id: String,
    env: &mut Env,
) -> Result<Run, Error> {
    let mut callbacks = Vec::new();
    let attached = std::mem::take(&mut request.completion_callbacks);
    Callbacks::attach(&mut callbacks, (&request.request_id, &attached), HOLDER, env)?;
    let state = NexusOperationState {
        request: Some(request),
        endpoint_id,
        handler_request_id: env.ids.uuid(),
        status: Status::Running as i32,
        start_time_ns: env.now.as_nanos(),
        callbacks,
        ..NexusOperationState::default()
    };
    let mut run = Run::new(key.clone(), env.ids.uuid(), state);
    run.begin();
    Ok(run)
}

pub(crate) fn reply(run: &Run, started: bool) -> workflow_reply::Reply {
    let response = StartNexusOperationExecutionResponse { run_id: run.run_id.clone(), started };
    let reply = OperationReply { reply: Some(operation_reply::Reply::Start(response)) };
    workflow_reply::Reply::NexusOperation(Box::new(reply))
}
