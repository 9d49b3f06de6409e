//! Traces for OpenTelemetry: from the call of a client to its record in the log, through all nodes that it crosses.
//!
//! Off unless there is an endpoint to send them to. Spans are made by `tracing` under one target, and sent in the background
//! by OTLP over gRPC; what the collector does not take in time is dropped.

use std::time::Duration;

use opentelemetry::{
    KeyValue,
    propagation::{Extractor, Injector, TextMapPropagator},
    trace::TracerProvider,
};
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::{
    Resource,
    propagation::TraceContextPropagator,
    trace::{Sampler, SdkTracerProvider, SpanExporter as Exporter},
};
use perdure_cluster::trace::{Carrier, carry};
use perdure_types::TRACE_TARGET;
use serde::Deserialize;
use tracing::{Span, level_filters::LevelFilter};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::{Layer, filter::Targets, registry::LookupSpan};

use crate::exit::Failure;

const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);
const TRACEPARENT: &str = "traceparent";

/// Where traces go, and which.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TracesConfig {
    pub endpoint: Option<String>,
    /// Of calls that do not come with a trace.
    pub one_in: u32,
}

/// What is being sent; to be ended before the process.
pub struct Traces(SdkTracerProvider);

impl Traces {
    /// None: nobody wants them. To be called in the runtime that sends them.
    pub fn start(config: &TracesConfig) -> Result<Option<Self>, Failure> {
        let Some(endpoint) = &config.endpoint else { return Ok(None) };
        let refused =
            |reason: String| Failure::new(Failure::USAGE, format!("cannot send traces to {endpoint}: {reason}"));
        if !endpoint.starts_with("http://") {
            return Err(refused("the endpoint is a URL like http://127.0.0.1:4317, of a collector nearby".to_owned()));
        }
        let exporter = SpanExporter::builder()
            .with_tonic()
            .with_endpoint(endpoint.as_str())
            .with_timeout(EXPORT_TIMEOUT)
            .build()
            .map_err(|error| refused(error.to_string()))?;
        Ok(Some(Self::through(exporter, config.one_in)))
    }

    fn through(exporter: impl Exporter + 'static, one_in: u32) -> Self {
        let resource = Resource::builder()
            .with_service_name("perdure")
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .build();
        // A trace that a client or another node has begun goes on.
        let sampler = Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(1.0 / f64::from(one_in.max(1)))));
        let provider =
            SdkTracerProvider::builder().with_batch_exporter(exporter).with_sampler(sampler).with_resource(resource);
        carry(W3c(TraceContextPropagator::new()));
        Self(provider.build())
    }

    /// Takes the spans that are to be traced, and only those.
    pub fn layer<S>(&self) -> impl Layer<S> + use<S>
    where
        S: tracing::Subscriber + for<'a> LookupSpan<'a>,
    {
        tracing_opentelemetry::layer()
            .with_tracer(self.0.tracer("perdure"))
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_filter(Targets::new().with_target(TRACE_TARGET, LevelFilter::INFO))
    }

    /// Sends what is left.
    pub async fn end(self) {
        let ended = tokio::task::spawn_blocking(move || self.0.shutdown_with_timeout(EXPORT_TIMEOUT)).await;
        if let Ok(Err(error)) = ended {
            tracing::warn!(%error, "the last traces could not be sent");
        }
    }
}

/// Trace context as the W3C writes it.
struct W3c(TraceContextPropagator);

struct Written(String);

impl Injector for Written {
    fn set(&mut self, key: &str, value: String) {
        if key == TRACEPARENT {
            self.0 = value;
        }
    }
}

struct Given<'a>(&'a str);

impl Extractor for Given<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        (key == TRACEPARENT).then_some(self.0)
    }

    fn keys(&self) -> Vec<&str> {
        vec![TRACEPARENT]
    }
}

impl Carrier for W3c {
    fn traceparent(&self, span: &Span) -> String {
        if span.is_disabled() {
            return String::new();
        }
        let mut written = Written(String::new());
        self.0.inject_context(&span.context(), &mut written);
        written.0
    }

    fn follow(&self, span: &Span, traceparent: &str) {
        // A context that cannot be read begins a new trace.
        let _ = span.set_parent(self.0.extract(&Given(traceparent)));
    }
}
