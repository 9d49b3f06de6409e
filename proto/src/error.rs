//! The one error of every call that a client may see in the end: a gRPC code, a message, and the detail message that
//! Temporal's SDKs parse. It crosses nodes as it is; the frontend turns it into a gRPC status.

use prost::Message;
pub use tonic::Code;

pub use crate::generated::perdure::node::v1::Error;
use crate::generated::perdure::node::v1::NotOwner;
use crate::generated::temporal::api::{
    enums::v1::{NamespaceState, ResourceExhaustedCause, ResourceExhaustedScope},
    errordetails::v1 as details,
    failure::v1::Failure,
};

const NOT_OWNER: &str = "perdure.node.v1.NotOwner";
/// Marks errors after which nobody knows what was done. Without content, and for nodes only.
const IN_DOUBT: &str = "perdure.node.v1.InDoubt";
const STORE_SILENT: &str = "the store does not answer, try again";

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}: {}", self.grpc_code(), self.message)
    }
}

impl std::error::Error for Error {}

impl Error {
    /// An error without a detail message.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code: code as i32, message: message.into(), detail: None }
    }

    fn with<M: Message>(code: Code, message: impl Into<String>, name: &str, detail: &M) -> Self {
        let detail = prost_types::Any {
            type_url: format!("type.googleapis.com/temporal.api.errordetails.v1.{name}"),
            value: detail.encode_to_vec(),
        };
        Self { code: code as i32, message: message.into(), detail: Some(detail) }
    }

    pub fn grpc_code(&self) -> Code {
        Code::from_i32(self.code)
    }

    /// INVALID_ARGUMENT: the request can never succeed as it is.
    pub fn invalid_argument(message: impl Into<String>) -> Self {
        Self::new(Code::InvalidArgument, message)
    }

    /// NOT_FOUND of a workflow, run, activity or task.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::with(Code::NotFound, message, "NotFoundFailure", &details::NotFoundFailure::default())
    }

    pub fn namespace_not_found(namespace: &str) -> Self {
        Self::with(
            Code::NotFound,
            format!("Namespace {namespace} is not found."),
            "NamespaceNotFoundFailure",
            &details::NamespaceNotFoundFailure { namespace: namespace.to_owned() },
        )
    }

    pub fn namespace_already_exists(message: impl Into<String>) -> Self {
        Self::with(
            Code::AlreadyExists,
            message,
            "NamespaceAlreadyExistsFailure",
            &details::NamespaceAlreadyExistsFailure::default(),
        )
    }

    /// FAILED_PRECONDITION: the namespace is deprecated or deleted.
    pub fn namespace_invalid_state(namespace: &str, state: NamespaceState, allowed: &[NamespaceState]) -> Self {
        let names: Vec<String> = allowed.iter().map(|s| format!("{s:?}")).collect();
        Self::with(
            Code::FailedPrecondition,
            format!("Namespace has invalid state: {state:?}. Must be {}.", names.join(" or ")),
            "NamespaceInvalidStateFailure",
            &details::NamespaceInvalidStateFailure {
                namespace: namespace.to_owned(),
                state: state as i32,
                allowed_states: allowed.iter().map(|s| *s as i32).collect(),
            },
        )
    }

    /// ALREADY_EXISTS of a start: the run that is in the way, and the request that started it.
    pub fn workflow_already_started(
        message: impl Into<String>,
        start_request_id: &str,
        run_id: &str,
        first_execution_run_id: &str,
    ) -> Self {
        Self::with(
            Code::AlreadyExists,
            message,
            "WorkflowExecutionAlreadyStartedFailure",
            &details::WorkflowExecutionAlreadyStartedFailure {
                start_request_id: start_request_id.to_owned(),
                run_id: run_id.to_owned(),
                first_execution_run_id: first_execution_run_id.to_owned(),
            },
        )
    }

    /// The same of a standalone activity.
    pub fn activity_already_started(start_request_id: &str, run_id: &str) -> Self {
        Self::with(
            Code::AlreadyExists,
            "activity execution already started",
            "ActivityExecutionAlreadyStartedFailure",
            &details::ActivityExecutionAlreadyStartedFailure {
                start_request_id: start_request_id.to_owned(),
                run_id: run_id.to_owned(),
            },
        )
    }

    /// The same of a standalone Nexus operation.
    pub fn nexus_operation_already_started(start_request_id: &str, run_id: &str) -> Self {
        Self::with(
            Code::AlreadyExists,
            format!("nexus operation execution already started: request_id={start_request_id}, run_id={run_id}"),
            "NexusOperationExecutionAlreadyStartedFailure",
            &details::NexusOperationExecutionAlreadyStartedFailure {
                start_request_id: start_request_id.to_owned(),
                run_id: run_id.to_owned(),
            },
        )
    }

    /// ALREADY_EXISTS: cancellation was requested before.
    pub fn cancellation_already_requested(message: impl Into<String>) -> Self {
        Self::with(
            Code::AlreadyExists,
            message,
            "CancellationAlreadyRequestedFailure",
            &details::CancellationAlreadyRequestedFailure::default(),
        )
    }

    /// INVALID_ARGUMENT: the worker failed the query.
    pub fn query_failed(message: impl Into<String>, failure: Option<Failure>) -> Self {
        Self::with(Code::InvalidArgument, message, "QueryFailedFailure", &details::QueryFailedFailure { failure })
    }

    /// FAILED_PRECONDITION: the workflow is not in a state to do this now.
    pub fn workflow_not_ready(message: impl Into<String>) -> Self {
        Self::with(
            Code::FailedPrecondition,
            message,
            "WorkflowNotReadyFailure",
            &details::WorkflowNotReadyFailure::default(),
        )
    }

    pub fn failed_precondition(message: impl Into<String>) -> Self {
        Self::new(Code::FailedPrecondition, message)
    }

    /// OUT_OF_RANGE: a worker's build id has been superseded by another one that is compatible.
    pub fn newer_build_exists(default_build_id: &str) -> Self {
        Self::with(
            Code::OutOfRange,
            format!("Task queue has a newer compatible build: {default_build_id:?}"),
            "NewerBuildExistsFailure",
            &details::NewerBuildExistsFailure { default_build_id: default_build_id.to_owned() },
        )
    }

    pub fn resource_exhausted(
        message: impl Into<String>,
        cause: ResourceExhaustedCause,
        scope: ResourceExhaustedScope,
    ) -> Self {
        Self::with(
            Code::ResourceExhausted,
            message,
            "ResourceExhaustedFailure",
            &details::ResourceExhaustedFailure { cause: cause as i32, scope: scope as i32 },
        )
    }

    /// The statuses of the operations of an ExecuteMultiOperation, in order.
    pub fn multi_operation(code: Code, message: impl Into<String>, operations: Vec<Error>) -> Self {
        let statuses = operations
            .into_iter()
            .map(|e| details::multi_operation_execution_failure::OperationStatus {
                code: e.code,
                message: e.message,
                details: e.detail.into_iter().collect(),
            })
            .collect();
        Self::with(
            code,
            message,
            "MultiOperationExecutionFailure",
            &details::MultiOperationExecutionFailure { statuses },
        )
    }

    /// What the operation of an ExecuteMultiOperation answers that did not fail itself.
    pub fn multi_operation_aborted() -> Self {
        let detail = crate::generated::temporal::api::failure::v1::MultiOperationExecutionAborted::default();
        Self {
            code: Code::Aborted as i32,
            message: "Operation was aborted.".to_owned(),
            detail: Some(prost_types::Any {
                type_url: "type.googleapis.com/temporal.api.failure.v1.MultiOperationExecutionAborted".to_owned(),
                value: detail.encode_to_vec(),
            }),
        }
    }

    /// UNAVAILABLE: nothing is wrong with the request, SDKs try again.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(Code::Unavailable, message)
    }

    /// UNAVAILABLE: what was asked for is done, or is done yet, or not. If a repetition is refused, that may be why.
    pub fn in_doubt(message: impl Into<String>) -> Self {
        let mark = prost_types::Any { type_url: IN_DOUBT.to_owned(), value: Vec::new() };
        Self { code: Code::Unavailable as i32, message: message.into(), detail: Some(mark) }
    }

    /// Whether it is an [`Error::in_doubt`].
    pub fn may_be_done(&self) -> bool {
        self.detail.as_ref().is_some_and(|detail| detail.type_url == IN_DOUBT)
    }

    /// The store does not answer, so nobody knows.
    pub fn store_silent() -> Self {
        Self::in_doubt(STORE_SILENT)
    }

    pub fn is_store_silent(&self) -> bool {
        self.message == STORE_SILENT
    }

    /// UNAVAILABLE, and nothing was done: this node does not own what the call names. `owner` may.
    pub fn not_owner(owner: Option<&str>) -> Self {
        let detail = NotOwner { owner: owner.unwrap_or_default().to_owned() };
        Self {
            code: Code::Unavailable as i32,
            message: "the shard of this workflow is moving, try again".to_owned(),
            detail: Some(prost_types::Any { type_url: NOT_OWNER.to_owned(), value: detail.encode_to_vec() }),
        }
    }

    /// What a [`Error::not_owner`] says.
    pub fn as_not_owner(&self) -> Option<NotOwner> {
        let detail = self.detail.as_ref().filter(|detail| detail.type_url == NOT_OWNER)?;
        NotOwner::decode(detail.value.as_slice()).ok()
    }

    pub fn unimplemented(what: &str) -> Self {
        Self::new(Code::Unimplemented, format!("{what} is not implemented"))
    }

    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Code::Internal, message)
    }

    /// The gRPC status with the detail as `grpc-status-details-bin`.
    pub fn to_status(&self) -> tonic::Status {
        let Some(detail) = self.detail.as_ref().filter(|detail| detail.type_url != IN_DOUBT) else {
            return tonic::Status::new(self.grpc_code(), self.message.clone());
        };
        let rich = crate::generated::google::rpc::Status {
            code: self.code,
            message: self.message.clone(),
            details: vec![detail.clone()],
        };
        tonic::Status::with_details(self.grpc_code(), self.message.clone(), rich.encode_to_vec().into())
    }

    /// The run of a [`Error::workflow_already_started`].
    pub fn already_started_run_id(&self) -> Option<String> {
        let detail = self.detail.as_ref()?;
        if !detail.type_url.ends_with("WorkflowExecutionAlreadyStartedFailure") {
            return None;
        }
        let detail = details::WorkflowExecutionAlreadyStartedFailure::decode(detail.value.as_slice()).ok()?;
        Some(detail.run_id)
    }
}
