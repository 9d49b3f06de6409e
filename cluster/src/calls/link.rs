//! The calling side of a link: connects, and connects again, for as long as the member is there.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use perdure_proto::{
    Code,
    perdure::node::v1::{
        CallFrame, CallFrames, Empty, Greeting, ReplyFrame, ReplyFrames, call_frame, node_client::NodeClient,
        reply_frame,
    },
};
use perdure_types::NodeId;
use tokio::{
    sync::{Notify, mpsc, oneshot, watch},
    task::JoinHandle,
    time::{Instant, timeout},
};
use tonic::{Streaming, transport::ClientTlsConfig};

use super::{
    CONNECTION_WINDOW_BYTES, MAX_MESSAGE_BYTES, QUEUE, STREAM_WINDOW_BYTES, carried, endpoint, fill, receipts::Receipts,
};
use crate::{membership::LinkNews, trace};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const FIRST_BACKOFF: Duration = Duration::from_millis(20);
const LONGEST_BACKOFF: Duration = Duration::from_secs(1);
/// A call waits so long for a link that is being made.
const PATIENCE: Duration = Duration::from_millis(500);
/// A peer that answers no ping for so long is out of reach.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(1);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(2);
/// Clocks that differ by more are worth a warning: event times of one workflow come from several nodes.
const CLOCK_WARNING_NS: i64 = 500_000_000;

/// Why there is no answer.
#[derive(Debug)]
pub(crate) enum CallError {
    /// The call did not leave this node.
    NotSent,
    /// The link broke: the call may have been carried out.
    Broken,
}

/// Who calls, and what to do with what cannot be told to the caller of a call.
pub(crate) struct Caller {
    pub cluster_id: String,
    pub me: NodeId,
    pub clock: fn() -> i64,
    pub tls: Option<ClientTlsConfig>,
    /// An answer whose caller has gone.
    pub orphan: Box<dyn Fn(ReplyFrame) + Send + Sync>,
    /// What becomes of links.
    pub news: mpsc::Sender<(NodeId, LinkNews)>,
    pub receipts: Arc<Receipts>,
}

/// The link to one member. Dropping it breaks it.
pub(crate) struct Link {
    connection: watch::Receiver<Option<Arc<Connection>>>,
    clock_offset_ns: Arc<AtomicI64>,
    task: JoinHandle<()>,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
        if let Some(connection) = &*self.connection.borrow() {
            connection.close();
        }
    }
}

impl Link {
    pub(crate) fn start(caller: Arc<Caller>, node: NodeId, address: SocketAddr) -> Self {
        let (connected, connection) = watch::channel(None);
        let clock_offset_ns = Arc::new(AtomicI64::new(0));
        let keeper = Keeper { caller, node, address, connected, clock_offset_ns: clock_offset_ns.clone() };
        Self { connection, clock_offset_ns, task: tokio::spawn(keeper.keep()) }
    }

    /// The member's clock less this node's.
    pub(crate) fn clock_offset_ns(&self) -> i64 {
        self.clock_offset_ns.load(Ordering::Relaxed)
    }

    pub(crate) fn channel(&self) -> watch::Receiver<Option<Arc<Connection>>> {
        self.connection.clone()
    }
}

/// Calls over the link whose connection this is.
pub(crate) async fn call(
    mut connection: watch::Receiver<Option<Arc<Connection>>>,
    call: call_frame::Call,
) -> Result<reply_frame::Reply, CallError> {
    let connected = timeout(PATIENCE, connection.wait_for(Option::is_some)).await;
    let Ok(Ok(connected)) = connected.map(|found| found.map(|connection| connection.clone())) else {
        return Err(CallError::NotSent);
    };
    match connected {
        Some(connection) => connection.call(call).await,
        None => Err(CallError::NotSent),
    }
}

type Waiters = HashMap<u64, oneshot::Sender<reply_frame::Reply>>;

/// One connection, while it lasts.
pub(crate) struct Connection {
    next_id: AtomicU64,
    out: mpsc::Sender<CallFrame>,
    /// Calls without an answer; none when the connection has ended.
    waiters: Mutex<Option<Waiters>>,
    /// Calls whose callers have gone since the last message, and answers that have been handed on.
    cancelled: Mutex<Vec<u64>>,
    cancel: Notify,
    receipts: Arc<Receipts>,
}

impl Connection {
    fn waiters(&self) -> MutexGuard<'_, Option<Waiters>> {
        self.waiters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self) {
        // Their receivers learn it from the dropped senders.
        drop(self.waiters().take());
    }

    async fn call(self: Arc<Self>, call: call_frame::Call) -> Result<reply_frame::Reply, CallError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (answer, answered) = oneshot::channel();
        match self.waiters().as_mut() {
            Some(waiters) => waiters.insert(id, answer),
            None => return Err(CallError::NotSent),
        };
        let mut wait = Wait { connection: self.clone(), id, over: false };
        let frame = CallFrame { id, traceparent: trace::current(), call: Some(call) };
        if wait.connection.out.send(frame).await.is_err() {
            return Err(CallError::NotSent);
        }
        let reply = answered.await;
        wait.over = true;
        let reply = reply.map_err(|_| CallError::Broken)?;
        if let Some(task) = carried(&reply) {
            self.receipts.open(task.token.clone(), self.clone(), id);
        }
        Ok(reply)
    }

    /// Nothing is expected of that call any more: its caller has gone, or the task in its answer has been handed on.
    pub(crate) fn tell_over(&self, id: u64) {
        self.cancelled.lock().unwrap_or_else(PoisonError::into_inner).push(id);
        self.cancel.notify_one();
    }

    /// Returns the frame if nobody waits for it any more.
    fn answer(&self, frame: ReplyFrame) -> Option<ReplyFrame> {
        let waiter = self.waiters().as_mut().and_then(|waiters| waiters.remove(&frame.id));
        let ReplyFrame { id, reply: Some(reply) } = frame else { return None };
        match waiter {
            Some(waiter) => waiter.send(reply).err().map(|reply| ReplyFrame { id, reply: Some(reply) }),
            None => Some(ReplyFrame { id, reply: Some(reply) }),
        }
    }

    fn take_cancelled(&self) -> Vec<CallFrame> {
        let cancelled = std::mem::take(&mut *self.cancelled.lock().unwrap_or_else(PoisonError::into_inner));
        let cancel = |id| CallFrame { id, call: Some(call_frame::Call::Cancel(Empty {})), ..CallFrame::default() };
        cancelled.into_iter().map(cancel).collect()
    }
}

/// A caller that waits. Dropped before the answer, it cancels the call.
struct Wait {
    connection: Arc<Connection>,
    id: u64,
    over: bool,
}

impl Drop for Wait {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        let waited = self.connection.waiters().as_mut().and_then(|waiters| waiters.remove(&self.id));
        if waited.is_some() {
            self.connection.tell_over(self.id);
        }
    }
}

/// What is to be sent: a greeting, then frames.
struct Outgoing {
    greeting: Option<Greeting>,
    calls: mpsc::Receiver<CallFrame>,
    connection: Arc<Connection>,
}

impl Outgoing {
    async fn next(mut self) -> Option<(CallFrames, Self)> {
        if let Some(greeting) = self.greeting.take() {
            return Some((CallFrames { greeting: Some(greeting), frames: Vec::new() }, self));
        }
        let mut frames = self.connection.take_cancelled();
        while frames.is_empty() {
            tokio::select! {
                call = self.calls.recv() => frames.push(call?),
                () = self.connection.cancel.notified() => frames = self.connection.take_cancelled(),
            }
        }
        fill(&mut frames, || self.calls.try_recv().ok());
        Some((CallFrames { greeting: None, frames }, self))
    }
}

/// Why a connection could not be made.
enum Unreached {
    /// Nothing listens there, or another incarnation does.
    Ended(String),
    Other(String),
}

struct Keeper {
    caller: Arc<Caller>,
    node: NodeId,
    address: SocketAddr,
    connected: watch::Sender<Option<Arc<Connection>>>,
    clock_offset_ns: Arc<AtomicI64>,
}

impl Keeper {
    async fn keep(self) {
        let mut backoff = FIRST_BACKOFF;
        loop {
            match timeout(CONNECT_TIMEOUT * 2, self.connect()).await {
                Ok(Ok((connection, replies))) => {
                    tracing::debug!(node = %self.node, "link made");
                    self.tell(LinkNews::Up).await;
                    backoff = FIRST_BACKOFF;
                    self.connected.send_replace(Some(connection.clone()));
                    let reason = self.read(&connection, replies).await;
                    self.connected.send_replace(None);
                    connection.close();
                    tracing::info!(node = %self.node, reason, "link broken");
                    self.tell(LinkNews::Down).await;
                    continue;
                }
                Ok(Err(Unreached::Ended(reason))) => {
                    tracing::info!(node = %self.node, reason, "the process of this member has ended");
                    self.tell(LinkNews::Ended).await;
                }
                Ok(Err(Unreached::Other(reason))) => {
                    tracing::debug!(node = %self.node, reason, "member out of reach");
                    self.tell(LinkNews::Down).await;
                }
                Err(_) => {
                    tracing::debug!(node = %self.node, "member out of reach: it does not answer");
                    self.tell(LinkNews::Down).await;
                }
            }
            tokio::time::sleep(backoff).await;
            backoff = (backoff * 2).min(LONGEST_BACKOFF);
        }
    }

    async fn tell(&self, news: LinkNews) {
        let _ = self.caller.news.send((self.node.clone(), news)).await;
    }

    async fn connect(&self) -> Result<(Arc<Connection>, Streaming<ReplyFrames>), Unreached> {
        let other = |error: &dyn std::fmt::Display| Unreached::Other(error.to_string());
        let endpoint = endpoint(self.address, self.caller.tls.as_ref()).map_err(|error| other(&error))?;
        let endpoint = endpoint
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true);
        let channel = endpoint.connect().await.map_err(|error| {
            if is_refused(&error) { Unreached::Ended("connection refused".to_owned()) } else { other(&error) }
        })?;
        let (out, calls) = mpsc::channel(QUEUE);
        let connection = Arc::new(Connection {
            next_id: AtomicU64::new(1),
            out,
            waiters: Mutex::new(Some(Waiters::new())),
            cancelled: Mutex::default(),
            cancel: Notify::new(),
            receipts: self.caller.receipts.clone(),
        });
        let (sent, sent_ns) = (Instant::now(), (self.caller.clock)());
        let greeting = Greeting {
            cluster_id: self.caller.cluster_id.clone(),
            node: self.caller.me.to_string(),
            to_node: self.node.to_string(),
            time_ns: sent_ns,
        };
        let outgoing = Outgoing { greeting: Some(greeting), calls, connection: connection.clone() };
        let mut client = NodeClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let replies = client.calls(futures::stream::unfold(outgoing, Outgoing::next)).await;
        let mut replies = replies.map_err(|status| match status.code() {
            Code::FailedPrecondition => Unreached::Ended(status.message().to_owned()),
            _ => other(&status),
        })?;
        let greeted = replies.get_mut().message().await.map_err(|status| other(&status))?;
        let Some(greeting) = greeted.and_then(|message| message.greeting) else {
            return Err(Unreached::Other("no greeting".to_owned()));
        };
        self.compare_clocks(&greeting, sent_ns, sent.elapsed());
        Ok((connection, replies.into_inner()))
    }

    fn compare_clocks(&self, greeting: &Greeting, sent_ns: i64, round_trip: Duration) {
        let half = i64::try_from(round_trip.as_nanos() / 2).unwrap_or(0);
        let offset = greeting.time_ns.saturating_sub(sent_ns.saturating_add(half));
        self.clock_offset_ns.store(offset, Ordering::Relaxed);
        if offset.abs() > CLOCK_WARNING_NS {
            let offset_ms = offset / 1_000_000;
            tracing::warn!(node = %self.node, offset_ms, "the clocks of two nodes differ: set them by NTP");
        }
    }

    async fn read(&self, connection: &Connection, mut replies: Streaming<ReplyFrames>) -> String {
        loop {
            match replies.message().await {
                Ok(Some(message)) => {
                    for frame in message.frames {
                        if let Some(orphan) = connection.answer(frame) {
                            (self.caller.orphan)(orphan);
                        }
                    }
                }
                Ok(None) => return "closed by the other side".to_owned(),
                Err(status) => return status.to_string(),
            }
        }
    }
}

fn is_refused(error: &tonic::transport::Error) -> bool {
    let mut next: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<std::io::Error>()
            && io.kind() == std::io::ErrorKind::ConnectionRefused
        {
            return true;
        }
        next = error.source();
    }
    false
}
