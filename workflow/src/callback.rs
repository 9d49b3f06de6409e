//! One completion callback, whoever has it: workflows, updates, and executions of other kinds. Once what it waits for has
//! happened it is delivered, again until somebody takes it or says that it is of no use.
//!
//! A callback to [`SYSTEM_URL`] goes to the entity that its token names, as a call; others go out as HTTP requests.

use perdure_proto::{
    Error, nexus_token,
    perdure::{
        nexus::v1::{CallbackToken, NexusCall, NexusCompletion, NexusDelivery, nexus_call, nexus_reply},
        node::v1::{WorkflowCall, WorkflowReply, workflow_call::Command, workflow_reply},
        state::v1::CallbackInfo,
    },
    temporal::api::{
        callback::v1 as described,
        common::v1::{Callback, callback},
        enums::v1::CallbackState as State,
        failure::v1::Failure,
    },
};
use perdure_types::{ChainKey, Timestamp};

use crate::{
    api::{CallId, CallKind, Effect, Env},
    external_calls::is_settled,
    nexus_failure::{self as failure, backoff},
    nexus_operation::{REQUEST_TIMEOUT, to_dispatcher},
};

/// The address of what this cluster itself does.
pub(crate) const SYSTEM_URL: &str = "temporal://system";

const OPERATION_TOKEN_HEADER: &str = "nexus-operation-token";

pub(crate) fn attached(number: i64, request_id: &str, callback: &Callback, at: Timestamp) -> CallbackInfo {
    CallbackInfo {
        number,
        callback: Some(callback.clone()),
        registration_time_ns: at.as_nanos(),
        state: State::Standby as i32,
        request_id: request_id.to_owned(),
        ..CallbackInfo::default()
    }
}

/// The call that is under way. `None`: none is, or the callback is of no use.
pub(crate) fn call(info: &CallbackInfo, key: &ChainKey, mut completion: NexusCompletion) -> Option<WorkflowCall> {
    if info.state() != State::Scheduled {
        return None;
    }
    let Some(callback::Variant::Nexus(callback)) = info.callback.as_ref()?.variant.as_ref() else {
        return None;
    };
    let header = |name: &str| {
        callback.header.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    };
    completion.operation_token = header(OPERATION_TOKEN_HEADER).unwrap_or_default().to_owned();
    if callback.url == SYSTEM_URL {
        let token = nexus_token::decode(header(nexus_token::HEADER)?)?;
        return Some(to_caller(token, completion));
    }
    let delivery = NexusDelivery {
        url: callback.url.clone(),
        header: callback.header.clone(),
        completion: Some(completion),
        request_id: info.request_id.clone(),
    };
    let call = NexusCall {
        namespace_id: key.namespace_id.to_string(),
        timeout_ns: REQUEST_TIMEOUT.0,
        call: Some(nexus_call::Call::Delivery(delivery)),
        ..NexusCall::default()
    };
    Some(to_dispatcher(key, call))
}

fn to_caller(token: CallbackToken, mut completion: NexusCompletion) -> WorkflowCall {
    let (namespace_id, workflow_id) = (token.namespace_id.clone(), token.workflow_id.clone());
    let kind = token.entity_kind;
    completion.token = Some(token);
    let command = Some(Command::NexusCompletion(Box::new(completion)));
    WorkflowCall { namespace_id, workflow_id, kind, command }
}

/// The result of the call that was under way.
pub(crate) fn on_result(info: &mut CallbackInfo, result: Result<WorkflowReply, Error>, env: &Env) {
    use nexus_reply::Outcome;
    if info.state() != State::Scheduled {
        return;
    }
    let final_error = is_settled(&result);
    let (state, cause) = match result {
        Ok(WorkflowReply { reply: Some(workflow_reply::Reply::Nexus(reply)) }) => match reply.outcome {
            Some(Outcome::Delivered(_)) => (State::Succeeded, None),
            Some(Outcome::HandlerError(error)) if failure::is_retryable(&error) => (State::BackingOff, Some(*error)),
            Some(Outcome::HandlerError(error)) => (State::Failed, Some(*error)),
            _ => (State::BackingOff, Some(failure::internal("empty outcome"))),
        },
        Ok(_) => (State::Succeeded, None),
        Err(error) if final_error => (State::Failed, Some(failure::call_error(error.message, false))),
        Err(error) => (State::BackingOff, Some(failure::of_error(&error))),
    };
    attempt_over(info, state, cause, env);
}

/// It cannot be delivered to anybody.
pub(crate) fn give_up(info: &mut CallbackInfo, env: &Env) {
    let cause = failure::call_error("invalid callback token".to_owned(), false);
    attempt_over(info, State::Failed, Some(cause), env);
}

fn attempt_over(info: &mut CallbackInfo, state: State, cause: Option<Failure>, env: &Env) {
    info.attempt += 1;
    info.last_attempt_complete_ns = env.now.as_nanos();
    info.last_attempt_failure = cause;
    info.set_state(state);
    let limits = env.limits;
    let delay = backoff(info.attempt, limits.callback_retry_initial_interval, limits.callback_retry_max_interval);
    info.next_attempt_ns = if state == State::BackingOff { (env.now + delay).as_nanos() } else { 0 };
}

pub(crate) fn is_due(info: &CallbackInfo, now: Timestamp) -> bool {
    info.state() == State::BackingOff && info.next_attempt_ns <= now.as_nanos()
}

/// Ends a backoff: the call is under way again.
pub(crate) fn try_again(info: &mut CallbackInfo) {
    info.set_state(State::Scheduled);
    info.next_attempt_ns = 0;
}

/// What all kinds of entities show of it.
pub(crate) fn described(info: &CallbackInfo) -> described::CallbackInfo {
    described::CallbackInfo {
        callback: info.callback.clone(),
        registration_time: Timestamp(info.registration_time_ns).to_proto(),
        state: info.state,
        attempt: info.attempt,
        last_attempt_complete_time: Timestamp(info.last_attempt_complete_ns).to_proto(),
        last_attempt_failure: info.last_attempt_failure.clone(),
        next_attempt_schedule_time: Timestamp(info.next_attempt_ns).to_proto(),
        request_id: info.request_id.clone(),
        ..described::CallbackInfo::default()
    }
}

/// The callbacks of an execution that is no workflow: all wait for its end.
#[derive(Debug)]
pub struct Callbacks<'a> {
    pub key: &'a ChainKey,
    pub run_id: &'a str,
    /// How it ended; not used before.
    pub completion: &'a NexusCompletion,
}

impl Callbacks<'_> {
    /// `what` has them: for the text of a refusal.
    pub fn attach(
        list: &mut Vec<CallbackInfo>,
        (request_id, callbacks): (&str, &[Callback]),
        what: &str,
        env: &Env,
    ) -> Result<(), Error> {
        let (limit, attached_before) = (env.limits.callbacks_per_execution, list.len());
        if !callbacks.is_empty() && (attached_before + callbacks.len()) as i64 > limit {
            return Err(Error::failed_precondition(format!(
                "cannot attach more than {limit} callbacks to {what} ({attached_before} callbacks already attached)"
            )));
        }
        for callback in callbacks {
            list.push(attached(list.len() as i64 + 1, request_id, callback, env.now));
        }
        Ok(())
    }

    /// It has ended: everybody is told.
    pub fn release(&self, list: &mut [CallbackInfo], env: &Env) -> Vec<Effect> {
        for info in list.iter_mut().filter(|info| info.state() == State::Standby) {
            info.set_state(State::Scheduled);
            info.due_time_ns = env.now.as_nanos();
            if self.effect(info).is_none() {
                give_up(info, env);
            }
        }
        self.calls(list)
    }

    /// Calls without a result.
    pub fn calls(&self, list: &[CallbackInfo]) -> Vec<Effect> {
        list.iter().filter_map(|info| self.effect(info)).collect()
    }

    fn effect(&self, info: &CallbackInfo) -> Option<Effect> {
        let call = call(info, self.key, self.completion.clone())?;
        let id = CallId { run_id: self.run_id.to_owned(), kind: CallKind::Callback, event_id: info.number };
        Some(Effect::Call { id, call: Box::new(call) })
    }

    /// Calls whose backoff is over.
    pub fn when_due(&self, list: &mut [CallbackInfo], now: Timestamp) -> Vec<Effect> {
        let due = list.iter_mut().filter(|info| is_due(info, now));
        due.filter_map(|info| {
            try_again(info);
            self.effect(info)
        })
        .collect()
    }

    pub fn on_result(list: &mut [CallbackInfo], number: i64, result: Result<WorkflowReply, Error>, env: &Env) {
        if let Some(info) = list.iter_mut().find(|info| info.number == number) {
            on_result(info, result, env);
        }
    }

    /// When the next attempt of one that backs off is due.
    pub fn next_attempt(list: &[CallbackInfo]) -> Option<Timestamp> {
        let backing_off = list.iter().filter(|info| info.state() == State::BackingOff);
        backing_off.map(|info| Timestamp(info.next_attempt_ns)).min()
    }

    /// Is somebody being told right now?
    pub fn are_under_way(list: &[CallbackInfo]) -> bool {
        list.iter().any(|info| info.state() == State::Scheduled)
    }

    pub fn described(list: &[CallbackInfo]) -> impl Iterator<Item = described::CallbackInfo> {
        list.iter().map(described)
    }
}
