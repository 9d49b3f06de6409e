//! What the clients of a chaos run did, and what they were told: the first half of what the checker reads.
//!
//! A call is one for the client, however often it was sent again. What a client was not told is unknown, and stays so: the
//! server may have done it once, or not at all.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use anyhow::Result;
use serde::Serialize;

/// A call that changes something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    Start {
        request_id: String,
    },
    Signal {
        number: u64,
    },
    Update {
        update_id: String,
        number: u64,
    },
    /// The result of an activity; no two results are alike.
    Activity {
        run_id: String,
        activity_id: String,
        result: u64,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Acknowledged; with what the answer said: a run's id, an update's result.
    Done(String),
    /// Refused by the first answer: the server has done nothing.
    Refused(String),
    /// No answer, or a refusal after an attempt without an answer.
    Unknown(String),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Call {
    pub workflow_id: String,
    #[serde(flatten)]
    pub what: What,
    /// Since the recorder was made.
    pub invoked_ns: u64,
    pub answered_ns: u64,
    pub attempts: u32,
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// Collects the calls of all clients.
pub struct Recorder {
    epoch: Instant,
    calls: Mutex<Vec<Call>>,
}

impl Recorder {
    pub fn new() -> Self {
        Self { epoch: Instant::now(), calls: Mutex::default() }
    }

    pub fn now_ns(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    pub fn record(&self, call: Call) {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).push(call);
    }

    pub fn calls(&self) -> Vec<Call> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// One call a line, as JSON.
pub fn write(calls: &[Call], path: &Path) -> Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    for call in calls {
        serde_json::to_writer(&mut file, call)?;
        file.write_all(b"\n")?;
    }
    file.flush()?;
    Ok(())
}
