//! A client with a list of addresses, and the retries of the official SDKs.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use perdure_proto::temporal::api::workflowservice::v1::workflow_service_client::WorkflowServiceClient;
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

use crate::api::{Api, connect};

/// As in the SDKs' core: ten attempts within ten seconds.
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const BACKOFF_FACTOR: f64 = 1.7;
const LONGEST_BACKOFF: Duration = Duration::from_secs(5);
const MAX_ATTEMPTS: u32 = 10;
const PATIENCE: Duration = Duration::from_secs(10);
/// Failures that are shown one by one.
const SHOWN: u64 = 5;

/// The nodes that clients know.
pub struct Nodes {
    apis: Vec<Api>,
    /// Clients made, to spread them.
    clients: AtomicUsize,
    pub calls: AtomicU64,
    pub retries: AtomicU64,
    /// Calls that failed after all their retries.
    pub failed: AtomicU64,
}

/// What came of a call with its retries.
pub struct Answer<T> {
    pub result: Result<T, Status>,
    pub attempts: u32,
    /// An attempt before the last one may have been carried out.
    pub in_doubt: bool,
}

impl<T> Answer<T> {
    /// Whether the error, if it is one, was the server's decision.
    pub fn is_decided(&self) -> bool {
        self.result.as_ref().err().is_none_or(|error| !is_retryable(error.code()))
    }
}

impl Nodes {
    pub async fn connect(addresses: &[String], namespace: &str) -> Result<Arc<Self>> {
        let mut apis = Vec::new();
        for address in addresses {
            apis.push(connect(address, namespace, Duration::from_secs(60)).await?);
        }
        let none = AtomicU64::default;
        Ok(Arc::new(Self { apis, clients: AtomicUsize::new(0), calls: none(), retries: none(), failed: none() }))
    }

    /// A client that begins with the next node in turn.
    pub fn client(self: &Arc<Self>) -> Client {
        let first = self.clients.fetch_add(1, Ordering::Relaxed);
        Client { nodes: self.clone(), at: Arc::new(AtomicUsize::new(first)) }
    }

    pub fn namespace(&self) -> String {
        self.apis.first().map_or_else(String::new, Api::namespace)
    }

    pub fn identity(&self) -> String {
        self.apis.first().map_or_else(String::new, Api::identity)
    }
}

/// Keeps to one node until that one is out of reach. Clones share the choice.
#[derive(Clone)]
pub struct Client {
    pub nodes: Arc<Nodes>,
    at: Arc<AtomicUsize>,
}

impl Client {
    /// One attempt; a node that is out of reach is not asked again.
    pub async fn once<T, F>(&self, send: impl FnOnce(WorkflowServiceClient<Channel>) -> F) -> Result<T, Status>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let at = self.at.load(Ordering::Relaxed);
        let api = &self.nodes.apis[at % self.nodes.apis.len()];
        let answer = send(api.client.clone()).await;
        if answer.as_ref().is_err_and(is_out_of_reach) {
            // Of many calls that fail at once, one moves on.
            let _ = self.at.compare_exchange(at, at + 1, Ordering::Relaxed, Ordering::Relaxed);
        }
        answer.map(Response::into_inner)
    }

    /// A call as an SDK makes it.
    pub async fn call<T, F>(&self, send: impl Fn(WorkflowServiceClient<Channel>) -> F) -> Answer<T>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        self.nodes.calls.fetch_add(1, Ordering::Relaxed);
        let begun = Instant::now();
        let mut backoff = FIRST_BACKOFF;
        let mut attempts = 0;
        loop {
            attempts += 1;
            let result = self.once(&send).await;
            let retry = result.as_ref().is_err_and(|error| is_retryable(error.code()));
            if !retry {
                return Answer { result, attempts, in_doubt: attempts > 1 };
            }
            if attempts >= MAX_ATTEMPTS || begun.elapsed() + backoff > PATIENCE {
                let before = self.nodes.failed.fetch_add(1, Ordering::Relaxed);
                if let Err(error) = &result
                    && before < SHOWN
                {
                    eprintln!("a call failed after {attempts} attempts: {} ({})", error.message(), error.code());
                }
                return Answer { result, attempts, in_doubt: true };
            }
            self.nodes.retries.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(backoff).await;
            backoff = backoff.mul_f64(BACKOFF_FACTOR).min(LONGEST_BACKOFF);
        }
    }
}

/// Whether another node is to be asked: this one said so, or its connection broke.
pub fn is_out_of_reach(error: &Status) -> bool {
    matches!(error.code(), Code::Unavailable | Code::Unknown | Code::Cancelled)
}

/// What the SDKs' core tries again.
fn is_retryable(code: Code) -> bool {
    matches!(
        code,
        Code::DataLoss
            | Code::Internal
            | Code::Unknown
            | Code::ResourceExhausted
            | Code::Aborted
            | Code::OutOfRange
            | Code::Unavailable
            | Code::DeadlineExceeded
            | Code::Cancelled
    )
}
