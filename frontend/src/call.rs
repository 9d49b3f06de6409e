//! One call of the API under way: whose namespace it concerns, how long it may take, how it reaches its owner.

use std::{
    pin::Pin,
    sync::{Arc, OnceLock},
    time::Duration,
};

use perdure_cluster::Namespace;
use perdure_proto::{
    Code, Error,
    perdure::node::v1::{MatchingCall, WorkflowCall, matching_call, matching_reply, workflow_call, workflow_reply},
    temporal::api::enums::v1::NamespaceState,
};
use perdure_types::{EntityKind, Limits};
use tokio::time::{Instant, timeout};

use crate::{
    Frontend,
    deadline::timeout_of,
    delivery::Deliveries,
    metrics,
    repeat::{is_the_same_again, while_unavailable},
    token,
};

/// How long an owner may be out of reach before the client hears of it, if it has set no deadline. Its own retries take ten
/// seconds together, with SDKs, and are over when it hears of it later; so the whole wait is here.
const LONGEST_RETRY: Duration = Duration::from_secs(30);
/// Left of a client's deadline when a long poll is answered with nothing.
const TAIL_ROOM: Duration = Duration::from_secs(1);
/// An owner's own limit ends a long poll first; this is for an owner that hangs.
const OWNER_GRACE: Duration = Duration::from_secs(2);
/// What a task queue's home may take longer than it was told.
const POLL_GRACE: Duration = Duration::from_millis(500);

type Answer<'c, T> = Pin<Box<dyn Future<Output = Result<T, Error>> + Send + 'c>>;

/// The context of one call.
pub(crate) struct Call<'a> {
    frontend: &'a Frontend,
    operation: &'static str,
    begun: Instant,
    deadline: Option<Instant>,
    namespace: OnceLock<Arc<Namespace>>,
    deliveries: Deliveries,
}

impl<'a> Call<'a> {
    pub(crate) fn begin<T>(frontend: &'a Frontend, operation: &'static str, request: &tonic::Request<T>) -> Self {
        metrics::call_begun(operation);
        let begun = Instant::now();
        Self {
            frontend,
            operation,
            begun,
            deadline: timeout_of(request.metadata()).map(|t| begun + t),
            namespace: OnceLock::new(),
            deliveries: Deliveries::new(frontend.cluster().clone()),
        }
    }

    /// Turns the outcome into what the client gets. The one place where an error becomes a gRPC status.
    pub(crate) fn finish<T>(mut self, outcome: Result<T, Error>) -> Result<tonic::Response<T>, tonic::Status> {
        match outcome {
            Ok(message) => {
                let mut response = tonic::Response::new(message);
                self.deliveries.attach(&mut response);
                Ok(response)
            }
            Err(error) => {
                metrics::call_failed(self.operation, self.namespace_label(), &error);
                if matches!(error.grpc_code(), Code::Internal | Code::DataLoss | Code::Unknown) {
                    tracing::error!(operation = self.operation, %error, "call failed");
                } else {
                    tracing::debug!(operation = self.operation, %error, "call refused");
                }
                Err(error.to_status())
            }
        }
    }

    pub(crate) fn frontend(&self) -> &'a Frontend {
        self.frontend
    }

    pub(crate) fn limits(&self) -> &'a Limits {
        self.frontend.limits()
    }

    /// The task with this token leaves with the answer: if the answer cannot be written, it is offered again.
    pub(crate) fn hands_out(&self, task_token: &mut bytes::Bytes) {
        self.deliveries.add(task_token);
        *task_token = token::seal(task_token);
    }

    // ---- Namespaces --------------------------------------------------------------------------------------------

    /// The namespace of that name, for calls on what already exists in it.
    pub(crate) fn namespace(&self, name: &str) -> Result<Arc<Namespace>, Error> {
        let namespace = self.lookup(name)?;
        self.in_state(namespace, &[NamespaceState::Registered, NamespaceState::Deprecated])
    }

    /// The namespace of that name, for calls that start something in it.
    pub(crate) fn namespace_for_start(&self, name: &str) -> Result<Arc<Namespace>, Error> {
        let namespace = self.lookup(name)?;
        self.in_state(namespace, &[NamespaceState::Registered])
    }

    /// The namespace that a task token names, and the request too if it names one.
    pub(crate) fn namespace_of_token(&self, name: &str, id: &str) -> Result<Arc<Namespace>, Error> {
        if id.is_empty() {
            return Err(namespace_not_set());
        }
        let allowed = [NamespaceState::Registered, NamespaceState::Deprecated];
        if name.is_empty() {
            let found = self.frontend.namespaces().by_id(id).ok_or_else(|| Error::namespace_not_found(id))?;
            return self.in_state(found, &allowed);
        }
        let namespace = self.lookup(name)?;
        if namespace.id() != id {
            return Err(Error::invalid_argument("Operation requested with a token from a different namespace."));
        }
        self.in_state(namespace, &allowed)
    }

    /// The namespace of that name as it is now, in whatever state but deleted; read it again for each attempt to change it.
    pub(crate) fn namespace_now(&self, name: &str) -> Result<Arc<Namespace>, Error> {
        let namespace = self.lookup(name)?;
        let state = NamespaceState::try_from(namespace.record.state).unwrap_or_default();
        let allowed = [NamespaceState::Registered, NamespaceState::Deprecated];
        if !allowed.contains(&state) {
            return Err(Error::namespace_invalid_state(name, state, &allowed));
        }
        self.namespace.get_or_init(|| namespace.clone());
        Ok(namespace)
    }

    fn lookup(&self, name: &str) -> Result<Arc<Namespace>, Error> {
        if name.is_empty() {
            return Err(namespace_not_set());
        }
        crate::validate::namespace_name(name, self.limits())?;
        self.frontend.namespaces().by_name(name).ok_or_else(|| Error::namespace_not_found(name))
    }

    fn in_state(&self, namespace: Arc<Namespace>, allowed: &[NamespaceState]) -> Result<Arc<Namespace>, Error> {
        let namespace = self.namespace.get_or_init(|| namespace).clone();
        let state = NamespaceState::try_from(namespace.record.state).unwrap_or_default();
        if allowed.contains(&state) {
            return Ok(namespace);
        }
        Err(Error::namespace_invalid_state(namespace.name(), state, allowed))
    }

    fn namespace_label(&self) -> Option<Arc<str>> {
        self.namespace.get().map(|n| Arc::from(n.name()))
    }

    // ---- Waiting -----------------------------------------------------------------------------------------------

    /// Until when a long poll of at most `longest` may wait so that its answer still reaches the client.
    pub(crate) fn long_poll_until(&self, longest: Duration) -> Instant {
        let latest = self.begun + longest;
        let Some(deadline) = self.deadline else { return latest };
        let tail = TAIL_ROOM.min(deadline.saturating_duration_since(self.begun) / 2);
        latest.min(deadline - tail)
    }

    /// Just before the client's deadline; `longest` from now when it has none.
    pub(crate) fn answer_by(&self, longest: Duration) -> Instant {
        let latest = self.begun + longest;
        let Some(deadline) = self.deadline else { return latest };
        let tail = Duration::from_millis(50).min(deadline.saturating_duration_since(self.begun) / 10);
        latest.min(deadline - tail)
    }

    /// Runs a task poll that answers by `until` of itself: `None` when it does not, or when this node drains. Giving up
    /// looks to the task queue's home as if the client had vanished, hence the grace.
    pub(crate) async fn poll<T>(
        &self,
        until: Instant,
        poll: impl Future<Output = Result<T, Error>>,
    ) -> Result<Option<T>, Error> {
        let mut draining = self.frontend.draining();
        if *draining.borrow_and_update() {
            return Err(Error::unavailable("this server is shutting down"));
        }
        tokio::select! {
            biased;
            outcome = poll => outcome.map(Some),
            () = tokio::time::sleep_until(until + POLL_GRACE) => Ok(None),
            // An error means that nobody can start the drain any more.
            Ok(_) = draining.wait_for(|draining| *draining) => Ok(None),
        }
    }

    // ---- Owners ------------------------------------------------------------------------------------------------

    /// Calls the workflow id's entity. While its shard moves the call is repeated, within the client's deadline; if it is in
    /// doubt what it did, only if it would do the same again.
    ///
    /// Calls are boxed here: what waits for them, in layers, would hold room for their futures in each.
    pub(crate) fn workflow(
        &self,
        namespace_id: &str,
        workflow_id: &str,
        command: workflow_call::Command,
    ) -> Answer<'_, workflow_reply::Reply> {
        self.entity(EntityKind::Workflow, namespace_id, workflow_id, command)
    }

    /// The same for an entity of any kind.
    pub(crate) fn entity(
        &self,
        kind: EntityKind,
        namespace_id: &str,
        id: &str,
        command: workflow_call::Command,
    ) -> Answer<'_, workflow_reply::Reply> {
        let again_in_doubt = is_the_same_again(&command);
        let call = WorkflowCall {
            namespace_id: namespace_id.to_owned(),
            workflow_id: id.to_owned(),
            kind: kind.number(),
            command: Some(command),
        };
        Box::pin(async move {
            let attempt = || self.frontend.cluster().workflow(&call);
            let is_draining = || self.frontend.is_draining();
            let reply = while_unavailable(self.answer_by(LONGEST_RETRY), again_in_doubt, is_draining, attempt).await?;
            reply.reply.ok_or_else(|| unexpected_reply(self.operation))
        })
    }

    /// Calls the home of a task queue.
    pub(crate) fn matching(
        &self,
        namespace_id: &str,
        task_queue: &str,
        command: matching_call::Command,
    ) -> impl Future<Output = Result<matching_reply::Reply, Error>> + use<'_, 'a> {
        self.matching_until(None, namespace_id, task_queue, command)
    }

    /// Calls the home of a task queue, which answers by `until`: with nothing when there was nothing.
    pub(crate) fn matching_until(
        &self,
        until: Option<Instant>,
        namespace_id: &str,
        task_queue: &str,
        command: matching_call::Command,
    ) -> impl Future<Output = Result<matching_reply::Reply, Error>> + use<'_, 'a> {
        // 0 says "no limit": a wait that is over already is as short as can be said.
        let timeout = until.map(|u| u.saturating_duration_since(Instant::now()).as_nanos().max(1));
        let call = MatchingCall {
            namespace_id: namespace_id.to_owned(),
            task_queue: task_queue.to_owned(),
            timeout_ns: timeout.map_or(0, |ns| i64::try_from(ns).unwrap_or(i64::MAX)),
            command: Some(command),
            ..MatchingCall::default()
        };
        let reply = self.frontend.cluster().matching(call);
        async move { reply.await?.reply.ok_or_else(|| unexpected_reply(self.operation)) }
    }

    /// `work`, or `None` if it takes longer than until `until`.
    pub(crate) async fn before<T>(&self, until: Instant, work: impl Future<Output = T>) -> Option<T> {
        timeout(until.saturating_duration_since(Instant::now()), work).await.ok()
    }

    /// The answer of an owner that is asked for news. `None`: there are none in time, or this node drains; the client asks
    /// again, elsewhere.
    pub(crate) async fn owner_news<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let until = self.long_poll_until(self.limits().long_poll.to_std() + OWNER_GRACE);
        let mut draining = self.frontend.draining();
        tokio::select! {
            biased;
            outcome = self.before(until, work) => outcome,
            // An error means that nobody can start the drain any more.
            Ok(_) = draining.wait_for(|draining| *draining) => None,
        }
    }

    pub(crate) fn unexpected_reply(&self) -> Error {
        unexpected_reply(self.operation)
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        let namespace = self.namespace.get().map(|namespace| namespace.name());
        metrics::call_ended(self.operation, namespace, self.begun.elapsed());
    }
}

fn unexpected_reply(operation: &str) -> Error {
    Error::internal(format!("{operation}: the owner answered with something else"))
}

pub(crate) fn namespace_not_set() -> Error {
    Error::invalid_argument("Namespace not set on request.")
}
