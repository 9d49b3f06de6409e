//! Logs and metrics of the process.

use std::{
    io::IsTerminal,
    net::SocketAddr,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use axum::{Router, routing::get};
use metrics::Unit::Count;
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use perdure_types::{Placement, TRACE_TARGET};
use tokio::net::TcpListener;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, layer::SubscriberExt, reload, util::SubscriberInitExt};

use crate::{
    cli::{LogFormat, LogLevel},
    exit::Failure,
    log_level, process,
    traces::Traces,
};

/// Upper bounds of latencies: from an append to a fast disk to a long poll, then to workflows that run for days.
const SECONDS: [f64; 24] = [
    0.0005,
    0.001,
    0.002,
    0.005,
    0.01,
    0.02,
    0.05,
    0.1,
    0.2,
    0.5,
    1.0,
    2.0,
    5.0,
    10.0,
    20.0,
    60.0,
    120.0,
    300.0,
    900.0,
    3600.0,
    14400.0,
    86400.0,
    604_800.0,
    2_592_000.0,
];
/// Most end here; the rest is for how long workflows run.
const SHORT: usize = 17;
const COUNTS: [f64; 12] = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0];
/// Recent samples are folded into the histograms at least so often, so that they do not pile up when nobody reads.
const UPKEEP: Duration = Duration::from_secs(10);

/// The level in force, and the way to change it.
static FILTER: OnceLock<Mutex<(LogLevel, reload::Handle<EnvFilter, Registry>)>> = OnceLock::new();

/// Sends log lines to standard error, and spans that are traced where traces go.
pub fn init_logs(level: LogLevel, format: LogFormat, traces: Option<&Traces>) {
    let (filter, handle) = reload::Layer::new(filter(level));
    // Set once; a second call would only fail to change anything.
    let _ = FILTER.set(Mutex::new((level, handle)));
    let lines = fmt::layer().with_writer(std::io::stderr).with_target(false);
    let lines: Box<dyn Layer<Registry> + Send + Sync> = match format {
        LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).with_filter(filter).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).with_filter(filter).boxed(),
    };
    tracing_subscriber::registry().with(lines).with(traces.map(Traces::layer)).init();
}

/// From now on lines of this level and above are logged.
pub fn set_log_level(level: LogLevel) -> Result<(), String> {
    let mut current = FILTER.get().ok_or("logs are not set up")?.lock().unwrap_or_else(PoisonError::into_inner);
    current.1.reload(filter(level)).map_err(|error| error.to_string())?;
    current.0 = level;
    drop(current);
    tracing::warn!(?level, "log level changed");
    Ok(())
}

pub fn log_level() -> LogLevel {
    FILTER.get().map_or(LogLevel::Never, |current| current.lock().unwrap_or_else(PoisonError::into_inner).0)
}

/// The libraries below speak up from `warn` on. Spans of traces are not for log lines.
fn filter(level: LogLevel) -> EnvFilter {
    let levels = match level {
        LogLevel::Debug => "debug,h2=info,hyper=info,scylla=info,tonic=info,tower=info,opentelemetry=info",
        LogLevel::Info => "info,h2=warn,hyper=warn,scylla=error,tonic=warn,tower=warn,opentelemetry=warn",
        LogLevel::Warn => "warn,scylla=error",
        LogLevel::Error => "error",
        LogLevel::Never => "off",
    };
    EnvFilter::new(format!("{levels},{TRACE_TARGET}=off"))
}

type Measure = Box<dyn Fn() + Send + Sync>;

/// The process's metrics. Some are measured when they are read.
#[derive(Clone)]
pub struct Metrics {
    rendered: PrometheusHandle,
    measures: Arc<Mutex<Vec<Measure>>>,
}

impl Metrics {
    /// Metrics that are made before this go nowhere.
    pub fn install() -> Result<Self, Failure> {
        let failed = |error: BuildError| Failure::new(Failure::OTHER, format!("cannot collect metrics: {error}"));
        let builder = || -> Result<PrometheusBuilder, BuildError> {
            let long = Matcher::Full("workflow_schedule_to_close_latency".to_owned());
            let records = Matcher::Full("perdure_log_row_records".to_owned());
            PrometheusBuilder::new()
                .set_buckets(&SECONDS[..SHORT])?
                .set_buckets_for_metric(long, &SECONDS)?
                .set_buckets_for_metric(records, &COUNTS)
        };
        let rendered = builder().and_then(PrometheusBuilder::install_recorder).map_err(failed)?;
        perdure_frontend::describe_metrics();
        perdure_nexus::describe_metrics();
        perdure_persistence::describe_metrics();
        perdure_shard::telemetry::describe();
        process::describe();
        let metrics = Self { rendered, measures: Arc::default() };
        metrics.measure(process::measure);
        Ok(metrics)
    }

    /// To be done each time before metrics are read; quick, and without waiting.
    pub fn measure(&self, measure: impl Fn() + Send + Sync + 'static) {
        self.measures.lock().unwrap_or_else(PoisonError::into_inner).push(Box::new(measure));
    }

    fn render(&self) -> String {
        for measure in self.measures.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            measure();
        }
        self.rendered.render()
    }

    /// Serves `/metrics` for Prometheus on `address` for as long as the process lives; gives the address that it is served on.
    pub async fn serve(&self, address: SocketAddr) -> Result<SocketAddr, Failure> {
        let port_taken =
            |error| Failure::new(Failure::PORT_TAKEN, format!("cannot serve metrics on {address}: {error}"));
        let listener = TcpListener::bind(address).await.map_err(port_taken)?;
        let bound = listener.local_addr().map_err(port_taken)?;
        let metrics = self.clone();
        let answer = move || {
            let text = metrics.render();
            async move { ([("content-type", "text/plain; version=0.0.4; charset=utf-8")], text) }
        };
        let router = Router::new().route("/metrics", get(answer)).merge(log_level::routes());
        let router = router.into_make_service_with_connect_info::<SocketAddr>();
        tokio::spawn(axum::serve(listener, router).into_future());
        let rendered = self.rendered.clone();
        tokio::spawn(async move {
            let mut tick = tokio::time::interval(UPKEEP);
            loop {
                tick.tick().await;
                rendered.run_upkeep();
            }
        });
        Ok(bound)
    }
}

const MEMBERS: &str = "perdure_members";
const DRAINING: &str = "perdure_members_draining";
const AWAY: &str = "perdure_members_away";
const OWNED: &str = "perdure_shards_owned";
const WANTED: &str = "perdure_shards_wanted";
/// Temporal's.
const CHANGES: &str = "membership_changed_count";
const SHARDS: &str = "numshards_gauge";

pub fn describe_members() {
    metrics::describe_gauge!(MEMBERS, Count, "Live members of the cluster, as this node sees it");
    metrics::describe_gauge!(DRAINING, Count, "Members that hand their shards over to end");
    metrics::describe_gauge!(AWAY, Count, "Members that the store does not answer, or that others cannot call");
    metrics::describe_gauge!(
        WANTED,
        Count,
        "Shards that the ring gives to this node; perdure_shards_owned is what it has"
    );
    metrics::describe_gauge!(OWNED, Count, "Shards that this node serves");
    metrics::describe_gauge!(SHARDS, Count, "The same as perdure_shards_owned, by Temporal's name");
    metrics::describe_counter!(CHANGES, Count, "Changes of members and places that this node has seen");
}

/// What the node serves.
pub fn owned(shards: usize) {
    metrics::gauge!(OWNED).set(shards as f64);
    metrics::gauge!(SHARDS, "service_name" => "history").set(shards as f64);
}

/// What the node sees of its cluster.
pub fn members(placement: &Placement) {
    let draining = placement.members.values().filter(|member| member.draining).count();
    let wanted = placement.owners.iter().filter(|owner| **owner == placement.me).count();
    metrics::gauge!(MEMBERS).set(placement.members.len() as f64);
    metrics::gauge!(DRAINING).set(draining as f64);
    let away = placement.members.values().filter(|member| member.is_away()).count();
    metrics::gauge!(AWAY).set(away as f64);
    metrics::gauge!(WANTED).set(wanted as f64);
    metrics::counter!(CHANGES).absolute(placement.version);
}

/// A node that is the whole cluster.
pub fn alone() {
    metrics::gauge!(MEMBERS).set(1.0);
    metrics::gauge!(DRAINING).set(0.0);
    metrics::gauge!(AWAY).set(0.0);
    metrics::counter!(CHANGES).absolute(0);
}
