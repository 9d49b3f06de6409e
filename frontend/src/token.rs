//! Task tokens as they come back from workers. Whatever bytes a client sends, nothing is trusted but the shape: the
//! owner compares the rest with its state.

use bytes::Bytes;
use perdure_proto::{
    Error,
    perdure::node::v1::{TaskToken, task_token::Kind},
};
use prost::Message;

use crate::validate;

/// The token of a task of that kind, with everything in it that routing needs.
pub(crate) fn decode(bytes: &Bytes, kind: Kind) -> Result<TaskToken, Error> {
    if bytes.is_empty() {
        return Err(Error::invalid_argument("Task token not set on request."));
    }
    let token =
        TaskToken::decode(bytes.clone()).map_err(|_| Error::invalid_argument("Error deserializing task token."))?;
    if token.namespace_id.is_empty() {
        return Err(crate::call::namespace_not_set());
    }
    let complete = match kind {
        Kind::Workflow => !token.workflow_id.is_empty() && validate::is_uuid(&token.run_id),
        Kind::Activity => {
            !token.workflow_id.is_empty() && validate::is_uuid(&token.run_id) && token.scheduled_event_id > 0
        }
        Kind::Query => !token.task_queue.is_empty() && !token.query_id.is_empty(),
        Kind::Unspecified => false,
    };
    if token.kind() != kind || !complete {
        return Err(Error::invalid_argument("Invalid TaskToken."));
    }
    Ok(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> TaskToken {
        TaskToken {
            kind: Kind::Workflow as i32,
            namespace_id: "namespace".into(),
            workflow_id: "workflow".into(),
            run_id: "0fd54b4e-0b8e-4ad5-9ab4-0b9a9d4a4a10".into(),
            ..Default::default()
        }
    }

    fn check(bytes: impl Into<Bytes>, kind: Kind, expect: Result<TaskToken, &str>) {
        assert_eq!(
            decode(&bytes.into(), kind).map_err(|e| e.message),
            expect.map_err(str::to_owned)
        );
    }

    #[test]
    fn what_a_token_must_have() {
        check(token().encode_to_vec(), Kind::Workflow, Ok(token()));
        check("", Kind::Workflow, Err("Task token not set on request."));
        check("not a token", Kind::Workflow, Err("Error deserializing task token."));
        check(token().encode_to_vec(), Kind::Activity, Err("Invalid TaskToken."));
        let no_run = TaskToken {
            run_id: "x".into(),
            ..token()
        };
        check(no_run.encode_to_vec(), Kind::Workflow, Err("Invalid TaskToken."));
        let no_namespace = TaskToken {
            namespace_id: String::new(),
            ..token()
        };
        check(
            no_namespace.encode_to_vec(),
            Kind::Workflow,
            Err("Namespace not set on request."),
        );
    }
}
