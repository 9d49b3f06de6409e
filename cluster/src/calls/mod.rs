//! Calls from node to node: one stream of frames each way between two nodes, many calls on it at once.
//!
//! A call has an id; its answer carries the same. Frames that wait share a message. Dropping the future of a call sends a
//! cancellation, so that a poll whose client has gone is taken back at the task queue's home. Both directions are bounded:
//! who reads slowly is sent slowly. Nothing here is forwarded: one hop at most.
//!
//! [`link`] is the calling side, [`service`] the answering one, [`links`] keeps one link to each member. [`receipts`] sees to
//! it that tasks are not lost with a node that they go through.

pub(crate) mod link;
pub(crate) mod links;
pub(crate) mod receipts;
pub(crate) mod service;

use std::net::SocketAddr;

use bytes::Bytes;
use perdure_proto::{
    perdure::node::v1::{ReplyFrame, TaskToken, matching_reply, reply_frame, task_token::Kind, workflow_reply},
    temporal::api::workflowservice::v1::PollActivityTaskQueueResponse,
};
use prost::Message;
use tonic::transport::{ClientTlsConfig, Endpoint, Error};

/// Frames in one message at most, and their size together unless the first alone is larger, bytes.
const FRAMES_PER_MESSAGE: usize = 256;
const BYTES_PER_MESSAGE: usize = 256 << 10;
/// Frames that wait to be sent, each way.
const QUEUE: usize = 1024;
/// A larger message is refused: nothing that fits into a call of a client comes near.
pub(crate) const MAX_MESSAGE_BYTES: usize = 64 << 20;
/// HTTP/2 windows: enough that one large history does not stop the others.
const STREAM_WINDOW_BYTES: u32 = 8 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;

/// Where a node takes calls.
pub(crate) fn endpoint(address: SocketAddr, tls: Option<&ClientTlsConfig>) -> Result<Endpoint, Error> {
    match tls {
        None => Endpoint::from_shared(format!("http://{address}")),
        Some(tls) => Endpoint::from_shared(format!("https://{address}"))?.tls_config(tls.clone()),
    }
}

/// The task that an answer carries, if it carries one that its shard has recorded as started: on its way from the shard to
/// the task queue's home, or from there to the node of the poll.
pub(crate) fn task_of(frame: &ReplyFrame) -> Option<TaskToken> {
    let carried = carried(frame.reply.as_ref()?)?;
    let token = TaskToken::decode(carried.token.clone()).ok()?;
    matches!(token.kind(), Kind::Workflow | Kind::Activity).then_some(token)
}

/// A task in an answer.
pub(crate) struct Carried<'a> {
    pub token: &'a Bytes,
    /// It does no harm to give it out again though a worker may have it: a workflow task, whose first answer counts; an
    /// activity that may be tried again. One that may run only once waits for its timeout.
    pub repeatable: bool,
}

pub(crate) fn carried(reply: &reply_frame::Reply) -> Option<Carried<'_>> {
    let carried = match reply {
        reply_frame::Reply::Matching(reply) => match reply.reply.as_ref()? {
            matching_reply::Reply::WorkflowTask(task) => Carried { token: &task.task_token, repeatable: true },
            matching_reply::Reply::ActivityTask(task) => activity(task),
            _ => return None,
        },
        reply_frame::Reply::Workflow(reply) => match reply.reply.as_ref()? {
            workflow_reply::Reply::WorkflowTask(task) => Carried { token: &task.task_token, repeatable: true },
            workflow_reply::Reply::ActivityTask(task) => activity(task),
            _ => return None,
        },
        _ => return None,
    };
    (!carried.token.is_empty()).then_some(carried)
}

fn activity(task: &PollActivityTaskQueueResponse) -> Carried<'_> {
    let most = task.retry_policy.as_ref().map_or(1, |policy| policy.maximum_attempts);
    Carried { token: &task.task_token, repeatable: most == 0 || task.attempt < most }
}

/// Takes more of what waits, as long as it fits into one message with what is there.
fn fill<T: Message>(frames: &mut Vec<T>, mut next: impl FnMut() -> Option<T>) {
    let mut bytes: usize = frames.iter().map(Message::encoded_len).sum();
    while frames.len() < FRAMES_PER_MESSAGE && bytes < BYTES_PER_MESSAGE {
        let Some(frame) = next() else { return };
        bytes += frame.encoded_len();
        frames.push(frame);
    }
}
