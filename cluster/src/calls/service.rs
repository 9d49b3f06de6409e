//! The answering side of a link.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures::stream::BoxStream;
use perdure_proto::{
    Error,
    perdure::node::v1::{
        CallFrame, CallFrames, Greeting, ReplyFrame, ReplyFrames, TaskToken, call_frame, node_server::Node,
        reply_frame, task_token::Kind,
    },
};
use prost::Message;
use tokio::{
    sync::mpsc::{self, error::TrySendError},
    task::AbortHandle,
    time::Instant,
};
use tonic::{Request, Response, Status, Streaming};
use tracing::Instrument;

use super::{QUEUE, carried, fill, receipts::HANDED_ON_WITHIN};
use crate::{route::Cluster, trace};

/// Calls of one node under way at most: long polls mostly.
const MAX_CALLS: usize = 100_000;
/// A task that was handed to a node so short a time before it vanished may never have reached its worker: it is offered
/// again. If it did, its completion is refused as stale. Of activities, only those that the node has not handed on.
const MAY_BE_LOST: Duration = HANDED_ON_WITHIN;
const MAX_REMEMBERED: usize = 10_000;

/// Serves the calls of other nodes.
pub(crate) struct NodeService {
    pub cluster: Cluster,
    pub cluster_id: String,
    pub clock: fn() -> i64,
}

#[tonic::async_trait]
impl Node for NodeService {
    type CallsStream = BoxStream<'static, Result<ReplyFrames, Status>>;

    async fn calls(&self, request: Request<Streaming<CallFrames>>) -> Result<Response<Self::CallsStream>, Status> {
        let mut calls = request.into_inner();
        let greeting = calls.message().await?.and_then(|message| message.greeting);
        let greeting = greeting.ok_or_else(|| Status::invalid_argument("no greeting"))?;
        let me = self.cluster.me();
        if greeting.cluster_id != self.cluster_id {
            tracing::warn!(node = greeting.node, cluster = greeting.cluster_id, "refused a node of another cluster");
            return Err(Status::permission_denied("this is another cluster"));
        }
        if greeting.to_node != me {
            return Err(Status::failed_precondition(format!("this is {me}")));
        }
        let answer = Greeting {
            cluster_id: self.cluster_id.clone(),
            node: me,
            to_node: greeting.node.clone(),
            time_ns: (self.clock)(),
        };
        let (replies, outgoing) = mpsc::channel(QUEUE);
        let peer = Arc::new(Peer { cluster: self.cluster.clone(), replies, state: Mutex::default() });
        tokio::spawn(peer.clone().read(calls, greeting.node));
        let outgoing = Outgoing { greeting: Some(answer), replies: outgoing, peer };
        Ok(Response::new(Box::pin(futures::stream::unfold(outgoing, Outgoing::next))))
    }
}

/// One node that calls.
struct Peer {
    cluster: Cluster,
    replies: mpsc::Sender<ReplyFrame>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    calls: HashMap<u64, AbortHandle>,
    /// Tasks that went over this link lately, by call.
    handed_out: HashMap<u64, Bytes>,
    /// By age; some of them have been handed on.
    order: VecDeque<(Instant, u64)>,
}

impl Peer {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn read(self: Arc<Self>, mut calls: Streaming<CallFrames>, node: String) {
        let in_good_order = loop {
            let message = tokio::select! {
                message = calls.message() => message,
                () = self.replies.closed() => break false,
            };
            match message {
                Ok(Some(message)) => message.frames.into_iter().for_each(|frame| self.begin(frame)),
                Ok(None) => break true,
                Err(_) => break false,
            }
        };
        tracing::debug!(node, in_good_order, "a node calls no more");
        let state = std::mem::take(&mut *self.state());
        state.calls.into_values().for_each(|call| call.abort());
        if !in_good_order {
            let lately = state.order.iter().filter(|(at, _)| at.elapsed() < MAY_BE_LOST);
            let lost = lately.filter_map(|(_, id)| TaskToken::decode(state.handed_out.get(id)?.clone()).ok());
            lost.for_each(|token| self.cluster.undelivered(token));
        }
    }

    fn begin(self: &Arc<Self>, frame: CallFrame) {
        let CallFrame { id, traceparent, call } = frame;
        match call {
            None => self.reply(ReplyFrame { id, reply: Some(error(Error::unimplemented("this call between nodes"))) }),
            Some(call_frame::Call::Cancel(_)) => {
                let call = self.state().calls.remove(&id);
                match call {
                    Some(call) => call.abort(),
                    None => self.handed_on(id),
                }
            }
            Some(call) => {
                let mut state = self.state();
                if state.calls.len() >= MAX_CALLS {
                    drop(state);
                    let full = Error::unavailable("too many calls of one node are under way");
                    return self.reply(ReplyFrame { id, reply: Some(error(full)) });
                }
                // Under the lock: the call's end finds itself in the map.
                let task = tokio::spawn(self.clone().carry_out(id, call).instrument(trace::from_node(&traceparent)));
                state.calls.insert(id, task.abort_handle());
            }
        }
    }

    async fn carry_out(self: Arc<Self>, id: u64, call: call_frame::Call) {
        let mut unanswered = Unanswered(Some((self.clone(), id)));
        let outcome = self.cluster.handle(call).await;
        unanswered.0 = None;
        if self.state().calls.remove(&id).is_none() {
            // Cancelled at this very moment.
            let reply = outcome.ok();
            return self.cluster.orphan(ReplyFrame { id, reply });
        }
        self.reply(ReplyFrame { id, reply: Some(outcome.unwrap_or_else(error)) });
    }

    /// From here on a cancellation comes too late: an answer whose caller has gone comes to light there.
    fn reply(self: &Arc<Self>, frame: ReplyFrame) {
        if let Some(task) = frame.reply.as_ref().and_then(carried).filter(|task| task.repeatable) {
            self.remember(frame.id, task.token.clone());
        }
        match self.replies.try_send(frame) {
            Ok(()) => {}
            Err(TrySendError::Full(frame)) => {
                let peer = self.clone();
                tokio::spawn(async move {
                    if let Err(unsent) = peer.replies.send(frame).await {
                        peer.cluster.orphan(unsent.0);
                    }
                });
            }
            Err(TrySendError::Closed(frame)) => self.cluster.orphan(frame),
        }
    }

    fn remember(&self, id: u64, token: Bytes) {
        let now = Instant::now();
        let mut state = self.state();
        while let Some((at, old)) = state.order.front().copied()
            && (now >= at + MAY_BE_LOST || state.order.len() >= MAX_REMEMBERED)
        {
            state.order.pop_front();
            state.handed_out.remove(&old);
        }
        state.order.push_back((now, id));
        state.handed_out.insert(id, token);
    }

    /// The node has handed on the task in the answer to that call. Of a workflow task it is no proof that its worker has it.
    fn handed_on(&self, id: u64) {
        let token = {
            let mut state = self.state();
            let Some(token) = state.handed_out.get(&id).cloned() else { return };
            if TaskToken::decode(token.clone()).is_ok_and(|token| token.kind() == Kind::Activity) {
                state.handed_out.remove(&id);
            }
            token
        };
        self.cluster.handed_on(&token);
    }
}

/// A call whose handler ends without an answer has panicked: its caller must not wait for ever.
struct Unanswered(Option<(Arc<Peer>, u64)>);

impl Drop for Unanswered {
    fn drop(&mut self) {
        if let Some((peer, id)) = self.0.take()
            && peer.state().calls.remove(&id).is_some()
        {
            let lost = Error::unavailable("the call was lost at its owner, try again");
            peer.reply(ReplyFrame { id, reply: Some(error(lost)) });
        }
    }
}

fn error(error: Error) -> reply_frame::Reply {
    reply_frame::Reply::Error(error)
}

/// What is to be sent: a greeting, then frames. What it still holds when it is dropped reaches nobody.
struct Outgoing {
    greeting: Option<Greeting>,
    replies: mpsc::Receiver<ReplyFrame>,
    peer: Arc<Peer>,
}

impl Outgoing {
    async fn next(mut self) -> Option<(Result<ReplyFrames, Status>, Self)> {
        if let Some(greeting) = self.greeting.take() {
            return Some((Ok(ReplyFrames { greeting: Some(greeting), frames: Vec::new() }), self));
        }
        let mut frames = vec![self.replies.recv().await?];
        fill(&mut frames, || self.replies.try_recv().ok());
        Some((Ok(ReplyFrames { greeting: None, frames }), self))
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        self.replies.close();
        while let Ok(frame) = self.replies.try_recv() {
            self.peer.cluster.orphan(frame);
        }
    }
}
