//! A trace goes along with a call from node to node.

#![allow(clippy::unwrap_used)] // Helpers too: clippy knows only test functions as tests.

mod common;

use std::sync::{Mutex, PoisonError};

use common::{
    Table,
    node::{signal, start_cluster},
};
use perdure_cluster::trace::{Carrier, carry};
use perdure_types::TRACE_TARGET;
use tracing::{Instrument, Span};

/// Traces that calls of other nodes came with.
static CAME: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Trace context is the name of the span.
struct Names;

impl Carrier for Names {
    fn traceparent(&self, span: &Span) -> String {
        span.metadata().map_or_else(String::new, |metadata| metadata.name().to_owned())
    }

    fn follow(&self, span: &Span, traceparent: &str) {
        assert_eq!(span.metadata().map(|metadata| metadata.name()), Some("node.call"));
        CAME.lock().unwrap_or_else(PoisonError::into_inner).push(traceparent.to_owned());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_to_another_node_brings_its_trace() {
    tracing::subscriber::set_global_default(tracing_subscriber::registry()).unwrap();
    carry(Names);
    let nodes = start_cluster(&Table::default(), 2).await;
    for number in 0..16 {
        let signal_it = signal(&format!("w{number}"));
        let call = nodes[0].cluster.workflow(&signal_it);
        call.instrument(tracing::info_span!(target: TRACE_TARGET, "the client's")).await.unwrap();
        nodes[0].cluster.workflow(&signal(&format!("untraced-{number}"))).await.unwrap();
    }
    let there = nodes[1].shards.calls().keys().filter(|id| id.starts_with('w')).count();
    assert!(there > 0, "some of 16 live on the other node");
    assert_eq!(*CAME.lock().unwrap(), vec!["the client's"; there]);
}
