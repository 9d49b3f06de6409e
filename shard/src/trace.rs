//! Which trace a call belongs to, while it waits for its shard, and how its record gets into the log.
//!
//! Off, all of this is a null pointer and a look at a cached flag.

use perdure_types::TRACE_TARGET;
use tracing::Span;

/// The span of who makes a call; a pointer, since most are not traced.
#[derive(Debug, Default)]
pub(crate) struct Caller(Option<Box<Span>>);

impl Caller {
    /// Who calls now.
    pub(crate) fn of(span: Span) -> Self {
        Self((!span.is_disabled()).then(|| Box::new(span)))
    }

    /// Does it as a part of the caller's trace.
    pub(crate) fn within<T>(&self, work: impl FnOnce() -> T) -> T {
        match &self.0 {
            Some(span) => span.in_scope(work),
            None => work(),
        }
    }
}

/// A call at its shard: from its arrival to its answer.
pub(crate) fn at_shard(shard_id: u32) -> Span {
    tracing::info_span!(target: TRACE_TARGET, "shard.call", shard_id)
}

/// A record on its way: from being submitted, in the trace of who does it, to being covered.
#[derive(Debug, Default)]
pub(crate) struct Append(Option<Box<Span>>);

impl Append {
    pub(crate) fn begin(bytes: usize) -> Self {
        let span = tracing::info_span!(
            target: TRACE_TARGET,
            "log.append",
            bytes,
            seq = tracing::field::Empty,
            records = tracing::field::Empty
        );
        Self((!span.is_disabled()).then(|| Box::new(span)))
    }

    pub(crate) fn is_traced(&self) -> bool {
        self.0.is_some()
    }

    /// It is sent, with others, in a row of the log.
    pub(crate) fn sent(&self, seq: u64, records: u64) {
        if let Some(span) = &self.0 {
            span.record("seq", seq);
            span.record("records", records);
        }
    }
}
