//! Failures as Nexus has them, in JSON, and as Temporal has them. A failure of Temporal's travels as the details of one of
//! Nexus's, so that nothing is lost between two servers of Temporal's kind.

use std::{collections::BTreeMap, sync::LazyLock};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use perdure_proto::{
    TEMPORAL_DESCRIPTORS,
    temporal::api::{
        common::v1::{Payload, Payloads},
        enums::v1::NexusHandlerErrorRetryBehavior as Retry,
        failure::v1::{
            ApplicationFailureInfo, CanceledFailureInfo, Failure, NexusHandlerFailureInfo, failure::FailureInfo,
        },
        nexus::v1,
    },
};
use prost::Message;
use prost_reflect::{DescriptorPool, DeserializeOptions, DynamicMessage, MessageDescriptor, SerializeOptions};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

const TYPE: &str = "type";
const TEMPORAL_FAILURE: &str = "temporal.api.failure.v1.Failure";
const PAYLOAD: &str = "temporal.api.common.v1.Payload";
const HANDLER_ERROR: &str = "nexus.HandlerError";
const OPERATION_ERROR: &str = "nexus.OperationError";
/// Marks an operation error that only wraps what its cause says.
const WRAPPER: &str = "unwrap-error";

/// A failure as it travels in bodies.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NexusFailure {
    pub message: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub stack_trace: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub details: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<Box<NexusFailure>>,
}

/// A failure that does not say what its type promises.
#[derive(Debug, PartialEq)]
pub struct Malformed(String);

impl std::fmt::Display for Malformed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// What kind of failure it is.
#[derive(Debug, PartialEq)]
pub enum Kind {
    /// The handler could not answer.
    HandlerError,
    /// The operation ended so: failed, or canceled.
    OperationError {
        canceled: bool,
    },
    Other,
}

impl NexusFailure {
    pub fn kind(&self) -> Kind {
        match self.metadata.get(TYPE).map(String::as_str) {
            Some(HANDLER_ERROR) => Kind::HandlerError,
            Some(OPERATION_ERROR) => {
                let state = self.details.as_ref().and_then(|details| details.get("state")).and_then(Value::as_str);
                Kind::OperationError { canceled: state == Some("canceled") }
            }
            _ => Kind::Other,
        }
    }

    /// What a wrapper wraps; of other failures themselves.
    pub fn unwrapped(self) -> Self {
        if self.metadata.get(WRAPPER).map(String::as_str) != Some("true") {
            return self;
        }
        let Self { cause, .. } = self.clone();
        cause.map_or(self, |cause| *cause)
    }

    /// An operation error around what has failed.
    pub fn operation_error(canceled: bool, cause: Self) -> Self {
        let state = if canceled { "canceled" } else { "failed" };
        let metadata = [(TYPE, OPERATION_ERROR), (WRAPPER, "true")];
        Self {
            message: "operation error".to_owned(),
            metadata: metadata.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
            details: Some(json!({ "state": state })),
            cause: Some(Box::new(cause)),
            ..Self::default()
        }
    }

    /// From a failure of Temporal's.
    pub fn from_temporal(failure: &Failure) -> Self {
        let cause = failure.cause.as_ref().map(|cause| Box::new(Self::from_temporal(cause)));
        let (kind, details) = match &failure.failure_info {
            Some(FailureInfo::NexusHandlerFailureInfo(info)) => (HANDLER_ERROR, handler_error_details(failure, info)),
            _ => {
                let rest = Failure { message: String::new(), stack_trace: String::new(), ..failure.clone() };
                (TEMPORAL_FAILURE, to_json(TEMPORAL_FAILURE, &rest))
            }
        };
        Self {
            message: failure.message.clone(),
            stack_trace: failure.stack_trace.clone(),
            metadata: [(TYPE.to_owned(), kind.to_owned())].into(),
            details,
            cause,
        }
    }

    /// As a failure of Temporal's.
    pub fn to_temporal(&self) -> Result<Failure, Malformed> {
        let mut failure = match self.metadata.get(TYPE).map(String::as_str) {
            Some(TEMPORAL_FAILURE) => match &self.details {
                Some(details) => from_json(TEMPORAL_FAILURE, details)?,
                None => Failure::default(),
            },
            Some(OPERATION_ERROR) => self.operation_failure(),
            Some(HANDLER_ERROR) => self.handler_failure()?,
            Some(_) => self.unknown_failure(),
            None if self.details.is_some() || !self.metadata.is_empty() => self.unknown_failure(),
            None => Failure::default(),
        };
        failure.message.clone_from(&self.message);
        failure.stack_trace.clone_from(&self.stack_trace);
        if let Some(cause) = &self.cause {
            failure.cause = Some(Box::new(cause.to_temporal()?));
        }
        Ok(failure)
    }

    fn operation_failure(&self) -> Failure {
        let info = match self.kind() {
            Kind::OperationError { canceled: true } => FailureInfo::CanceledFailureInfo(CanceledFailureInfo::default()),
            _ => FailureInfo::ApplicationFailureInfo(ApplicationFailureInfo {
                r#type: "OperationError".to_owned(),
                non_retryable: true,
                ..ApplicationFailureInfo::default()
            }),
        };
        Failure { failure_info: Some(info), ..Failure::default() }
    }

    fn handler_failure(&self) -> Result<Failure, Malformed> {
        let details = self.details.as_ref();
        let text = |key: &str| details.and_then(|details| details.get(key)).and_then(Value::as_str).unwrap_or_default();
        let retry = match details.and_then(|details| details.get("retryableOverride")).and_then(Value::as_bool) {
            None => Retry::Unspecified,
            Some(true) => Retry::Retryable,
            Some(false) => Retry::NonRetryable,
        };
        let encoded_attributes = match text("encodedAttributes") {
            "" => None,
            encoded => {
                let malformed = |error: &dyn std::fmt::Display| Malformed(format!("encodedAttributes: {error}"));
                let decoded = URL_SAFE_NO_PAD.decode(encoded).map_err(|error| malformed(&error))?;
                let value: Value = serde_json::from_slice(&decoded).map_err(|error| malformed(&error))?;
                Some(from_json::<Payload>(PAYLOAD, &value)?)
            }
        };
        let info = NexusHandlerFailureInfo { r#type: text("type").to_owned(), retry_behavior: retry as i32 };
        Ok(Failure {
            encoded_attributes,
            failure_info: Some(FailureInfo::NexusHandlerFailureInfo(info)),
            ..Failure::default()
        })
    }

    /// Of a type that nobody here knows: kept as it is, in the details.
    fn unknown_failure(&self) -> Failure {
        let rest = Self { message: String::new(), stack_trace: String::new(), ..self.clone() };
        let data = serde_json::to_vec(&rest).unwrap_or_default();
        let metadata = [("encoding".to_owned(), b"json/plain".as_slice().into())].into();
        let payload = Payload { metadata, data: data.into(), ..Payload::default() };
        let info = ApplicationFailureInfo {
            r#type: "NexusFailure".to_owned(),
            details: Some(Payloads { payloads: vec![payload] }),
            ..ApplicationFailureInfo::default()
        };
        Failure { failure_info: Some(FailureInfo::ApplicationFailureInfo(info)), ..Failure::default() }
    }
}

/// As the API of older SDKs has it.
impl From<&v1::Failure> for NexusFailure {
    fn from(failure: &v1::Failure) -> Self {
        Self {
            message: failure.message.clone(),
            stack_trace: failure.stack_trace.clone(),
            metadata: failure.metadata.iter().map(|(key, value)| (key.clone(), value.clone())).collect(),
            details: serde_json::from_slice(&failure.details).ok(),
            cause: failure.cause.as_ref().map(|cause| Box::new(Self::from(&**cause))),
        }
    }
}

fn handler_error_details(failure: &Failure, info: &NexusHandlerFailureInfo) -> Option<Value> {
    let mut details = Map::new();
    if !info.r#type.is_empty() {
        details.insert("type".to_owned(), info.r#type.clone().into());
    }
    match info.retry_behavior() {
        Retry::Retryable => drop(details.insert("retryableOverride".to_owned(), true.into())),
        Retry::NonRetryable => drop(details.insert("retryableOverride".to_owned(), false.into())),
        Retry::Unspecified => {}
    }
    if let Some(attributes) = failure.encoded_attributes.as_ref().and_then(|payload| to_json(PAYLOAD, payload)) {
        let encoded = URL_SAFE_NO_PAD.encode(attributes.to_string());
        details.insert("encodedAttributes".to_owned(), encoded.into());
    }
    Some(Value::Object(details))
}

static POOL: LazyLock<Option<DescriptorPool>> = LazyLock::new(|| DescriptorPool::decode(TEMPORAL_DESCRIPTORS).ok());

fn descriptor(name: &str) -> Option<MessageDescriptor> {
    POOL.as_ref()?.get_message_by_name(name)
}

fn to_json(name: &str, message: &impl Message) -> Option<Value> {
    let message = DynamicMessage::decode(descriptor(name)?, message.encode_to_vec().as_slice()).ok()?;
    message.serialize_with_options(serde_json::value::Serializer, &SerializeOptions::new()).ok()
}

fn from_json<T: Message + Default>(name: &str, value: &Value) -> Result<T, Malformed> {
    let malformed = |error: &dyn std::fmt::Display| Malformed(format!("{name}: {error}"));
    let descriptor = descriptor(name).ok_or_else(|| malformed(&"no such message"))?;
    let options = DeserializeOptions::new().deny_unknown_fields(false);
    let message = DynamicMessage::deserialize_with_options(descriptor, value, &options);
    let message = message.map_err(|error| malformed(&error))?;
    T::decode(message.encode_to_vec().as_slice()).map_err(|error| malformed(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn application(message: &str) -> Failure {
        let info = ApplicationFailureInfo { r#type: "T".into(), non_retryable: true, ..Default::default() };
        Failure {
            message: message.into(),
            stack_trace: "at".into(),
            source: "TestSDK".into(),
            failure_info: Some(FailureInfo::ApplicationFailureInfo(info)),
            ..Default::default()
        }
    }

    #[track_caller]
    fn there_and_back(failure: &Failure) {
        let text = serde_json::to_string(&NexusFailure::from_temporal(failure)).unwrap();
        let read: NexusFailure = serde_json::from_str(&text).unwrap();
        assert_eq!(read.to_temporal().as_ref(), Ok(failure), "{text}");
    }

    #[test]
    fn failures_of_temporal_come_back_as_they_went() {
        there_and_back(&application("no"));
        let cause = Some(Box::new(application("cause")));
        there_and_back(&Failure { cause: cause.clone(), ..application("no") });
        let info = NexusHandlerFailureInfo { r#type: "BAD_REQUEST".into(), retry_behavior: Retry::Retryable as i32 };
        let attributes = Payload { data: b"x".as_slice().into(), ..Default::default() };
        there_and_back(&Failure {
            message: "handler".into(),
            failure_info: Some(FailureInfo::NexusHandlerFailureInfo(info)),
            encoded_attributes: Some(attributes),
            cause,
            ..Default::default()
        });
        let canceled = FailureInfo::CanceledFailureInfo(CanceledFailureInfo::default());
        there_and_back(&Failure { message: "c".into(), failure_info: Some(canceled), ..Default::default() });
    }

    #[test]
    fn an_operation_error_is_what_it_wraps() {
        let inner = NexusFailure::from_temporal(&application("no"));
        let wrapped = NexusFailure::operation_error(true, inner.clone());
        assert_eq!(wrapped.kind(), Kind::OperationError { canceled: true });
        assert_eq!(wrapped.unwrapped(), inner);
        assert_eq!(inner.clone().unwrapped(), inner);
    }

    #[test]
    fn failures_of_others() {
        let read = |text: &str| serde_json::from_str::<NexusFailure>(text).unwrap().to_temporal();
        assert_eq!(read(r#"{"message":"no"}"#), Ok(Failure { message: "no".into(), ..Default::default() }));
        let canceled =
            read(r#"{"message":"no","metadata":{"type":"nexus.OperationError"},"details":{"state":"canceled"}}"#);
        assert!(matches!(canceled.unwrap().failure_info, Some(FailureInfo::CanceledFailureInfo(_))));
        let unknown = read(r#"{"message":"no","metadata":{"k":"v"},"details":[1,2]}"#).unwrap();
        let Some(FailureInfo::ApplicationFailureInfo(info)) = unknown.failure_info else { panic!("{unknown:?}") };
        assert_eq!(info.r#type, "NexusFailure");
        let details = &info.details.unwrap().payloads[0].data;
        assert_eq!(serde_json::from_slice::<Value>(details).unwrap()["details"], json!([1, 2]));
        assert!(read(r#"{"metadata":{"type":"temporal.api.failure.v1.Failure"},"details":{"message":5}}"#).is_err());
    }
}
