//! From settings to a driver session, with errors that say what to do.

use std::{sync::Arc, time::Duration};

use scylla::{
    client::{execution_profile::ExecutionProfile, session::Session, session_builder::SessionBuilder},
    errors::{
        ConnectionError, ConnectionPoolError, ConnectionSetupRequestErrorKind, DbError, MetadataError, NewSessionError,
    },
    policies::load_balancing::{DefaultPolicy, LoadBalancingPolicy},
};
use tokio::time::Instant;

use super::{
    config::{CassandraConfig, ConnectError},
    domain::Domain,
    retry::Careful,
    tls,
};

/// Of one attempt to reach a node.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(5);

/// A node that is silent for so long (frozen, cut off) gets no more requests until it is back.
const KEEPALIVE: Duration = Duration::from_secs(3);

/// Connects, trying again until the time is up: Cassandra may be starting, too.
pub(super) async fn session(config: &CassandraConfig) -> Result<Session, ConnectError> {
    config.check()?;
    let builder = builder(config)?;
    let seeds = config.addresses().join(", ");
    let started = Instant::now();
    let mut delay = Duration::from_millis(200);
    loop {
        // A node that accepts connections and says nothing must not hold us either.
        let attempt = tokio::time::timeout(config.connect_timeout(), builder.build()).await;
        let reason = match attempt {
            Ok(Ok(session)) => return Ok(session),
            Ok(Err(error)) => match refusal(&error, config) {
                Some(fatal) => return Err(fatal),
                None => error.to_string(),
            },
            Err(_) => "no answer".into(),
        };
        if started.elapsed() + delay >= config.connect_timeout() {
            return Err(ConnectError::Unreachable { seeds, waited_s: started.elapsed().as_secs(), reason });
        }
        tracing::warn!(seeds, reason, retry_ms = delay.as_millis() as u64, "Cassandra cannot be reached, trying again");
        tokio::time::sleep(delay).await;
        delay = (delay * 2).min(ATTEMPT_TIMEOUT);
    }
}

fn builder(config: &CassandraConfig) -> Result<SessionBuilder, ConnectError> {
    let domain = Domain::of(config.local_datacenter.as_deref());
    let profile = ExecutionProfile::builder()
        .consistency(domain.plain)
        .serial_consistency(Some(domain.serial))
        .request_timeout(Some(config.request_timeout()))
        .retry_policy(Arc::new(Careful))
        // A conditional write that is sent twice may be decided twice, so nothing is ever sent ahead of a failure.
        .speculative_execution_policy(None)
        .load_balancing_policy(load_balancing(config))
        .build();
    let mut builder = SessionBuilder::new()
        .known_nodes(config.addresses())
        .connection_timeout(ATTEMPT_TIMEOUT)
        .keepalive_interval(KEEPALIVE)
        .keepalive_timeout(KEEPALIVE)
        .keyspaces_to_fetch([config.keyspace.as_str()])
        .fetch_full_schema_metadata(false)
        .refresh_metadata_on_auto_schema_agreement(true)
        .default_execution_profile_handle(profile.into_handle());
    if let (Some(user), Some(password)) = (&config.user, &config.password) {
        builder = builder.user(user, password);
    }
    if let Some(settings) = &config.tls {
        builder = builder.tls_context(Some(tls::client(settings)?));
    }
    Ok(builder)
}

/// A replica of the partition coordinates, of the one data centre if there is one: other data centres never stand in for
/// it, since LOCAL levels would then count other replicas (G1).
fn load_balancing(config: &CassandraConfig) -> Arc<dyn LoadBalancingPolicy> {
    let policy = DefaultPolicy::builder().token_aware(true).permit_dc_failover(false);
    match &config.local_datacenter {
        Some(datacenter) => policy.prefer_datacenter(datacenter.clone()).build(),
        None => policy.build(),
    }
}

/// Errors that waiting does not cure.
fn refusal(error: &NewSessionError, config: &CassandraConfig) -> Option<ConnectError> {
    let NewSessionError::MetadataError(MetadataError::ConnectionPoolError(ConnectionPoolError::Broken {
        last_connection_error,
    })) = error
    else {
        return match error {
            NewSessionError::EmptyKnownNodesList | NewSessionError::IllegalConfig(_) => {
                Some(ConnectError::Config(error.to_string()))
            }
            _ => None,
        };
    };
    match last_connection_error {
        ConnectionError::ConnectionSetupRequestError(setup) => match setup.get_error() {
            ConnectionSetupRequestErrorKind::DbError(DbError::AuthenticationError | DbError::Unauthorized, message) => {
                let user = config.user.as_deref().unwrap_or_default();
                Some(ConnectError::Credentials(format!("user {user:?}: {message}")))
            }
            ConnectionSetupRequestErrorKind::MissingAuthentication => {
                Some(ConnectError::Credentials("it wants a user and a password, and none are configured".into()))
            }
            _ => None,
        },
        // A handshake that fails for what the certificates are fails again.
        ConnectionError::IoError(io) if io.kind() == std::io::ErrorKind::InvalidData && config.tls.is_some() => {
            Some(ConnectError::Tls(io.to_string()))
        }
        _ => None,
    }
}
