//! `perdure health`: asks a server by gRPC whether it serves. The exit code is the answer, for containers that have no other
//! program to ask with.

use std::time::Duration;

use clap::Args;
use perdure_proto::temporal::api::workflowservice::v1::workflow_service_server::SERVICE_NAME;
use tonic::{Code, transport::Endpoint};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

use crate::exit::Failure;

#[derive(Debug, Args)]
pub struct HealthArgs {
    /// Address of the gRPC API
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:7233", env = "PERDURE_HEALTH_ADDRESS")]
    address: String,
    /// Give up after this long
    #[arg(long, value_name = "MS", default_value_t = 2000, value_parser = clap::value_parser!(u64).range(1..))]
    timeout_ms: u64,
}

/// Fails unless the server takes calls.
pub async fn run(args: HealthArgs) -> Result<(), Failure> {
    let failed = |reason: String| Failure::new(Failure::OTHER, format!("{}: {reason}", args.address));
    let timeout = Duration::from_millis(args.timeout_ms);
    let endpoint = Endpoint::from_shared(format!("http://{}", args.address))
        .map_err(|error| Failure::new(Failure::USAGE, format!("{}: {error}", args.address)))?;
    let check = async {
        let channel = endpoint.connect().await.map_err(|_| failed("nothing answers there".to_owned()))?;
        let request = HealthCheckRequest { service: SERVICE_NAME.to_owned() };
        let answer = HealthClient::new(channel).check(request).await;
        match answer.map(|answer| answer.into_inner().status()) {
            Ok(ServingStatus::Serving) => Ok("SERVING"),
            Ok(status) => Err(failed(status.as_str_name().to_owned())),
            Err(status) if status.code() == Code::NotFound => Err(failed("no Temporal API is served there".to_owned())),
            Err(status) => Err(failed(status.message().to_owned())),
        }
    };
    let serving = tokio::time::timeout(timeout, check)
        .await
        .map_err(|_| failed(format!("no answer within {} ms", args.timeout_ms)))??;
    println!("{serving}");
    Ok(())
}
