//! Carries traces from node to node, and in from clients: as W3C trace context, which who exports traces reads and writes.
//!
//! Spans of all crates have the target [`TRACE_TARGET`]. Nobody listens to it unless the server is told where to send traces:
//! then a span is a look at a cached flag, and a call carries an empty text.

use std::sync::OnceLock;

use perdure_types::TRACE_TARGET;
use tracing::Span;

/// Translates between spans and trace context.
pub trait Carrier: Send + Sync + 'static {
    /// Empty: the span belongs to no trace that is recorded.
    fn traceparent(&self, span: &Span) -> String;
    /// The span becomes a part of that trace.
    fn follow(&self, span: &Span, traceparent: &str);
}

static CARRIER: OnceLock<Box<dyn Carrier>> = OnceLock::new();

/// From now on traces are carried; once in a process.
pub fn carry(carrier: impl Carrier) {
    let _ = CARRIER.set(Box::new(carrier));
}

/// The context of who calls now.
pub(crate) fn current() -> String {
    CARRIER.get().map_or_else(String::new, |carrier| carrier.traceparent(&Span::current()))
}

/// A call of another node, in its trace if it has one.
pub(crate) fn from_node(traceparent: &str) -> Span {
    if traceparent.is_empty() {
        Span::none()
    } else {
        follow(tracing::info_span!(target: TRACE_TARGET, "node.call"), traceparent)
    }
}

/// The span as a part of that trace, if there is one.
pub fn follow(span: Span, traceparent: &str) -> Span {
    if let Some(carrier) = CARRIER.get().filter(|_| !traceparent.is_empty() && !span.is_disabled()) {
        carrier.follow(&span, traceparent);
    }
    span
}
