//! Task tokens as they leave to workers and come back. Whatever bytes a client sends, nothing is trusted but the shape:
//! the owner compares the rest with its state.
//!
//! A token leaves with a checksum, so that one that was damaged on its way is refused: it may still name a task, and some
//! of its parts are compared with nothing. A checksum is no secret; who may call may also answer by ids.

use bytes::{BufMut, Bytes, BytesMut};
use perdure_proto::{
    Error,
    perdure::node::v1::{TaskToken, task_token::Kind},
};
use prost::Message;

use crate::validate;

/// The tag of field 15, a fixed32, which `TaskToken` leaves free: who reads a token as that message skips the checksum.
const CHECKSUM_TAG: u8 = 15 << 3 | 5;
const SEAL_BYTES: usize = 5;

/// The token with its checksum; no token stays none.
pub fn seal(token: &Bytes) -> Bytes {
    if token.is_empty() {
        return Bytes::new();
    }
    let mut sealed = BytesMut::with_capacity(token.len() + SEAL_BYTES);
    sealed.extend_from_slice(token);
    sealed.put_u8(CHECKSUM_TAG);
    sealed.put_u32_le(crc32fast::hash(token));
    sealed.freeze()
}

fn unseal(sealed: &Bytes) -> Option<Bytes> {
    let (token, seal) = sealed.split_at_checked(sealed.len().checked_sub(SEAL_BYTES)?)?;
    let token = sealed.slice_ref(token);
    let expected = crc32fast::hash(&token).to_le_bytes();
    (seal[0] == CHECKSUM_TAG && seal[1..] == expected).then_some(token)
}

/// The token of a task of that kind, with everything in it that routing needs.
pub(crate) fn decode(bytes: &Bytes, kind: Kind) -> Result<TaskToken, Error> {
    if bytes.is_empty() {
        return Err(Error::invalid_argument("Task token not set on request."));
    }
    let token = unseal(bytes).and_then(|token| TaskToken::decode(token).ok());
    let token = token.ok_or_else(|| Error::invalid_argument("Error deserializing task token."))?;
    if token.namespace_id.is_empty() {
        return Err(crate::call::namespace_not_set());
    }
    let complete = match kind {
        Kind::Workflow => !token.workflow_id.is_empty() && validate::is_uuid(&token.run_id),
        Kind::Activity => {
            !token.workflow_id.is_empty() && validate::is_uuid(&token.run_id) && token.scheduled_event_id > 0
        }
        Kind::Query | Kind::Nexus => !token.task_queue.is_empty() && !token.query_id.is_empty(),
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
        assert_eq!(decode(&seal(&bytes.into()), kind).map_err(|e| e.message), expect.map_err(str::to_owned));
    }

    #[test]
    fn what_a_token_must_have() {
        check(token().encode_to_vec(), Kind::Workflow, Ok(token()));
        check("", Kind::Workflow, Err("Task token not set on request."));
        check("not a token", Kind::Workflow, Err("Error deserializing task token."));
        check(token().encode_to_vec(), Kind::Activity, Err("Invalid TaskToken."));
        let no_run = TaskToken { run_id: "x".into(), ..token() };
        check(no_run.encode_to_vec(), Kind::Workflow, Err("Invalid TaskToken."));
        let no_namespace = TaskToken { namespace_id: String::new(), ..token() };
        check(no_namespace.encode_to_vec(), Kind::Workflow, Err("Namespace not set on request."));
    }

    #[test]
    fn a_damaged_token_is_no_token() {
        let sealed = seal(&token().encode_to_vec().into());
        assert_eq!(TaskToken::decode(sealed.clone()), Ok(token()));
        for index in 0..sealed.len() {
            assert!(decode(&sealed.slice(..index), Kind::Workflow).is_err());
            for bit in 0..8 {
                let mut damaged = sealed.to_vec();
                damaged[index] ^= 1 << bit;
                assert!(decode(&damaged.into(), Kind::Workflow).is_err(), "byte {index}, bit {bit}");
            }
        }
    }
}
