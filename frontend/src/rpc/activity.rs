//! What the calls of activity workers have in common, by token or by id.
//!
//! A payload over the limit does not fail the call: the activity fails for good instead, as retrying the attempt would
//! bring the same payload again.

use perdure_proto::{
    Error,
    perdure::node::v1::{
        ActivityRef, RespondActivityTask, RespondActivityTaskReply, TaskToken,
        respond_activity_task::{Canceled, Completed, Failed, Heartbeat, Outcome},
        task_token::Kind,
        workflow_call, workflow_reply,
    },
    temporal::api::{
        common::v1::{Payloads, WorkerVersionStamp},
        failure::v1::{ApplicationFailureInfo, Failure, ServerFailureInfo, failure::FailureInfo},
    },
};
use perdure_types::{EntityKind, Limits};
use prost::Message;

use crate::{call::Call, token, validate};

const RESULT_TOO_LARGE: &str = "Complete result exceeds size limit.";
const FAILURE_TOO_LARGE: &str = "Failure exceeds size limit.";
const CANCEL_DETAILS_TOO_LARGE: &str = "Cancel details exceed size limit.";
const HEARTBEAT_TOO_LARGE: &str = "Heartbeat details exceed size limit.";

/// What is kept of the texts of a failure that is over the limit, and how many causes deep.
const SHORT_TEXT_BYTES: usize = 4 << 10;
const SHORT_CAUSES: usize = 20;

/// The activity that a worker speaks about, and who speaks.
pub(crate) struct Speaker {
    /// Of what the activity belongs to: a workflow, or itself.
    pub(crate) kind: EntityKind,
    pub(crate) namespace_id: String,
    pub(crate) workflow_id: String,
    pub(crate) activity: ActivityRef,
    pub(crate) identity: String,
    pub(crate) worker_version: Option<WorkerVersionStamp>,
}

impl Speaker {
    pub(crate) fn by_token(
        call: &Call<'_>,
        token: &bytes::Bytes,
        namespace: &str,
        identity: String,
        worker_version: Option<WorkerVersionStamp>,
    ) -> Result<Self, Error> {
        let token = token::decode(token, Kind::Activity)?;
        call.namespace_of_token(namespace, &token.namespace_id)?;
        validate::identity(&identity, call.limits())?;
        let kind = EntityKind::from_number(token.entity_kind).unwrap_or(EntityKind::Workflow);
        let TaskToken { namespace_id, workflow_id, run_id, scheduled_event_id, started_event_id, attempt, .. } = token;
        let activity =
            ActivityRef { run_id, scheduled_event_id, attempt, activity_id: String::new(), started_event_id };
        Ok(Self { kind, namespace_id, workflow_id, activity, identity, worker_version })
    }

    pub(crate) fn by_id(
        call: &Call<'_>,
        namespace: &str,
        workflow_id: String,
        run_id: String,
        activity_id: String,
        identity: String,
    ) -> Result<Self, Error> {
        let namespace_id = call.namespace(namespace)?.id().to_owned();
        if activity_id.is_empty() {
            return Err(Error::invalid_argument("ActivityId is not set on request."));
        }
        validate::identity(&identity, call.limits())?;
        // Without a workflow it is one that no workflow has scheduled.
        let (kind, workflow_id) = if workflow_id.is_empty() {
            (EntityKind::Activity, activity_id.clone())
        } else {
            (EntityKind::Workflow, workflow_id)
        };
        if !run_id.is_empty() && !validate::is_uuid(&run_id) {
            return Err(Error::invalid_argument("Invalid RunId."));
        }
        let activity = ActivityRef { run_id, activity_id, ..Default::default() };
        Ok(Self { kind, namespace_id, workflow_id, activity, identity, worker_version: None })
    }

    pub(crate) async fn completed(self, call: &Call<'_>, result: Option<Payloads>) -> Result<(), Error> {
        let outcome = if too_large(result.as_ref(), call.limits()) {
            failed(server_failure(RESULT_TOO_LARGE))
        } else {
            Outcome::Completed(Completed { result })
        };
        self.say(call, outcome).await.map(drop)
    }

    pub(crate) async fn canceled(self, call: &Call<'_>, details: Option<Payloads>) -> Result<(), Error> {
        let outcome = if too_large(details.as_ref(), call.limits()) {
            failed(server_failure(CANCEL_DETAILS_TOO_LARGE))
        } else {
            Outcome::Canceled(Canceled { details })
        };
        self.say(call, outcome).await.map(drop)
    }

    /// Gives the failures that the worker is told about: those of the call itself.
    pub(crate) async fn failed(
        self,
        call: &Call<'_>,
        mut failure: Option<Failure>,
        mut last_heartbeat_details: Option<Payloads>,
    ) -> Result<Vec<Failure>, Error> {
        let mut complaints = Vec::new();
        if too_large(last_heartbeat_details.as_ref(), call.limits()) {
            last_heartbeat_details = None;
            complaints.push(server_failure(HEARTBEAT_TOO_LARGE));
        }
        if let Some(short) = shortened(failure.as_ref(), call.limits()) {
            complaints.push(short.clone());
            failure = Some(short);
        }
        self.say(call, Outcome::Failed(Failed { failure, last_heartbeat_details })).await?;
        Ok(complaints)
    }

    pub(crate) async fn heartbeat(
        self,
        call: &Call<'_>,
        details: Option<Payloads>,
    ) -> Result<RespondActivityTaskReply, Error> {
        if too_large(details.as_ref(), call.limits()) {
            self.say(call, failed(server_failure(HEARTBEAT_TOO_LARGE))).await?;
            // The attempt is over: the worker shall stop.
            return Ok(RespondActivityTaskReply { cancel_requested: true, ..Default::default() });
        }
        self.say(call, Outcome::Heartbeat(Heartbeat { details })).await
    }

    async fn say(self, call: &Call<'_>, outcome: Outcome) -> Result<RespondActivityTaskReply, Error> {
        let command = workflow_call::Command::RespondActivityTask(RespondActivityTask {
            activity: Some(self.activity),
            identity: self.identity,
            worker_version: self.worker_version,
            outcome: Some(outcome),
        });
        match call.entity(self.kind, &self.namespace_id, &self.workflow_id, command).await? {
            workflow_reply::Reply::RespondActivityTask(reply) => Ok(reply),
            workflow_reply::Reply::Empty(_) => Ok(RespondActivityTaskReply::default()),
            _ => Err(call.unexpected_reply()),
        }
    }
}

fn failed(failure: Failure) -> Outcome {
    Outcome::Failed(Failed { failure: Some(failure), last_heartbeat_details: None })
}

fn too_large(payloads: Option<&Payloads>, limits: &Limits) -> bool {
    validate::is_blob_too_large(validate::size(payloads), limits)
}

/// A failure that the server raises and that no retry can mend.
fn server_failure(message: &str) -> Failure {
    Failure {
        message: message.to_owned(),
        failure_info: Some(FailureInfo::ServerFailureInfo(ServerFailureInfo { non_retryable: true })),
        ..Default::default()
    }
}

/// What stands in for a failure over the size limit; `None` if it is within.
pub(crate) fn shortened(failure: Option<&Failure>, limits: &Limits) -> Option<Failure> {
    let failure = failure?;
    if !validate::is_blob_too_large(failure.encoded_len(), limits) {
        return None;
    }
    let mut short = server_failure(FAILURE_TOO_LARGE);
    short.cause = Some(Box::new(cut(failure, SHORT_CAUSES)));
    Some(short)
}

fn cut(failure: &Failure, causes: usize) -> Failure {
    let failure_info = match &failure.failure_info {
        Some(FailureInfo::ApplicationFailureInfo(info)) => {
            Some(FailureInfo::ApplicationFailureInfo(ApplicationFailureInfo {
                r#type: cut_text(&info.r#type),
                non_retryable: info.non_retryable,
                ..Default::default()
            }))
        }
        Some(FailureInfo::ServerFailureInfo(info)) => Some(FailureInfo::ServerFailureInfo(*info)),
        _ => None,
    };
    Failure {
        message: cut_text(&failure.message),
        source: cut_text(&failure.source),
        stack_trace: cut_text(&failure.stack_trace),
        failure_info,
        cause: failure.cause.as_ref().filter(|_| causes > 0).map(|cause| Box::new(cut(cause, causes - 1))),
        ..Default::default()
    }
}

fn cut_text(text: &str) -> String {
    text[..text.floor_char_boundary(SHORT_TEXT_BYTES)].to_owned()
}

/// The failure that an activity worker reports: an application failure, with sane delays.
pub(crate) fn validate_failure(failure: Option<&Failure>, must_be_application: bool) -> Result<(), Error> {
    let is_application = failure.is_none_or(|f| matches!(f.failure_info, Some(FailureInfo::ApplicationFailureInfo(_))));
    if must_be_application && !is_application {
        return Err(Error::invalid_argument("Failure must have ApplicationFailureInfo."));
    }
    let mut next = failure;
    while let Some(failure) = next {
        if let Some(FailureInfo::ApplicationFailureInfo(info)) = &failure.failure_info
            && let Some(delay) = &info.next_retry_delay
            && let Err(why) = validate::duration(Some(&mut delay.clone()))
            && why != "negative duration"
        {
            return Err(Error::invalid_argument(format!("NextRetryDelay is not a valid duration: {why}")));
        }
        next = failure.cause.as_deref();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_huge_failure_is_cut_at_every_level() {
        let leaf = Failure { message: "é".repeat(10_000), ..Default::default() };
        let failure = Failure {
            message: "m".repeat(10_000),
            cause: Some(Box::new(leaf)),
            failure_info: Some(FailureInfo::ApplicationFailureInfo(ApplicationFailureInfo {
                r#type: "Broken".into(),
                non_retryable: true,
                ..Default::default()
            })),
            ..Default::default()
        };
        let limits = Limits { blob_size_error_bytes: 20_000, ..Limits::default() };
        let short = shortened(Some(&failure), &limits).expect("over the limit");
        assert_eq!(short.message, FAILURE_TOO_LARGE);
        assert!(!validate::is_blob_too_large(short.encoded_len(), &limits));
        let cut = short.cause.expect("the original");
        assert!(matches!(
            &cut.failure_info,
            Some(FailureInfo::ApplicationFailureInfo(info)) if info.non_retryable && info.r#type == "Broken"
        ));
        assert_eq!(cut.cause.expect("its cause").message.chars().next(), Some('é'));
        assert_eq!(shortened(Some(&Failure::default()), &limits), None);
    }

    #[test]
    fn only_application_failures() {
        assert!(validate_failure(None, true).is_ok());
        let error = validate_failure(Some(&Failure::default()), true).expect_err("refused");
        assert_eq!(error.message, "Failure must have ApplicationFailureInfo.");
        assert!(validate_failure(Some(&Failure::default()), false).is_ok());
    }
}
