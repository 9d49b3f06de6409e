//! The connection to the server under test, and the few requests that every part sends.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use perdure_proto::temporal::api::workflowservice::v1::DescribeNamespaceRequest;
use perdure_proto::temporal::api::workflowservice::v1::workflow_service_client::WorkflowServiceClient;
use tonic::Request;
use tonic::transport::{Channel, Endpoint};

const MAX_MESSAGE_BYTES: usize = 64 << 20;
/// The time that an SDK gives a long poll; the server answers an idle one before.
const POLL_TIMEOUT: Duration = Duration::from_secs(70);

/// Cheap to clone: clones share one connection.
#[derive(Clone)]
pub struct Api {
    pub client: WorkflowServiceClient<Channel>,
    pub namespace: Arc<str>,
    pub identity: Arc<str>,
}

impl Api {
    pub fn namespace(&self) -> String {
        self.namespace.to_string()
    }

    pub fn identity(&self) -> String {
        self.identity.to_string()
    }
}

/// A connection that is made when it is first used.
pub fn client(address: &str) -> Result<WorkflowServiceClient<Channel>> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .with_context(|| format!("not an address: {address}"))?
        .connect_timeout(Duration::from_secs(5))
        .http2_keep_alive_interval(Duration::from_secs(30))
        .keep_alive_while_idle(true);
    Ok(WorkflowServiceClient::new(endpoint.connect_lazy()).max_decoding_message_size(MAX_MESSAGE_BYTES))
}

/// Connects, and waits until the server serves the namespace.
pub async fn connect(address: &str, namespace: &str, patience: Duration) -> Result<Api> {
    let client = client(address)?;
    let api =
        Api { client, namespace: namespace.into(), identity: format!("perdure-load@{}", std::process::id()).into() };
    let deadline = Instant::now() + patience;
    loop {
        let request = DescribeNamespaceRequest { namespace: namespace.to_owned(), ..Default::default() };
        match api.client.clone().describe_namespace(request).await {
            Ok(_) => return Ok(api),
            Err(error) if Instant::now() > deadline => {
                return Err(error).with_context(|| format!("{address} does not serve namespace `{namespace}`"));
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// A request with the deadline of a long poll.
pub fn long_poll<T>(message: T) -> Request<T> {
    with_timeout(message, POLL_TIMEOUT)
}

pub fn with_timeout<T>(message: T, timeout: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(timeout);
    request
}
