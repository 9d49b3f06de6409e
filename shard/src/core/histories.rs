//! Histories that an input needs before its entity can decide: a reset copies one, and takes over from those that
//! followed it. They are read while the input waits, as rows are.
//!
//! The entity may change meanwhile (timers, results of calls). It says so if what was read is too old.

use std::collections::BTreeMap;

use perdure_persistence::Store;
use perdure_proto::{
    Error,
    perdure::{
        node::v1::{RunHistory, workflow_call::Command},
        state::v1::RunSnapshot,
    },
    temporal::api::history::v1::{History, HistoryEvent, history_event::Attributes},
};
use perdure_types::{ChainKey, Timestamp};
use prost::Message;

use super::Core;
use crate::{
    entry::{Entry, Pending, TailBatch},
    history,
};

/// A history to read, with those of the runs that continued it.
#[derive(Debug)]
pub(crate) struct HistoriesJob {
    pub key: ChainKey,
    run_id: String,
    /// Of runs in memory: where their histories end, and the events that the store may not have.
    known: BTreeMap<String, (i64, Vec<TailBatch>)>,
}

impl HistoriesJob {
    /// What the input at the head of the queue needs, if it does and has it not.
    pub(super) fn of(key: &ChainKey, entry: &Entry) -> Option<Self> {
        let chain = entry.chain.as_ref()?;
        let Some(Pending::Call { command, .. }) = entry.queue.front() else { return None };
        let Command::Reset(reset) = &**command else { return None };
        if !reset.histories.is_empty() {
            return None;
        }
        let named = reset.request.as_ref().and_then(|r| r.workflow_execution.as_ref()).map(|e| e.run_id.clone());
        let run_id = named.filter(|id| !id.is_empty()).unwrap_or_else(|| chain.head().current_run_id.clone());
        chain.run_view(&run_id)?;
        let known = entry.runs.iter().filter_map(|(id, run)| {
            let end = chain.run_view(id)?.next_event_id;
            Some((id.clone(), (end, run.tail.iter().cloned().collect())))
        });
        Some(Self { key: key.clone(), run_id, known: known.collect() })
    }

    pub(crate) async fn run(mut self, store: &dyn Store) -> Result<Vec<RunHistory>, Error> {
        let mut histories = Vec::new();
        let mut next = Some(std::mem::take(&mut self.run_id));
        while let Some(run_id) = next.take() {
            let Some((end, tail)) = self.end_of(store, &run_id).await? else { break };
            let events = history::whole(store, &self.key, &run_id, end, tail).await?;
            next = events.last().and_then(continued_as);
            histories.push(RunHistory { run_id, history: Some(History::new(events)) });
        }
        Ok(histories)
    }

    /// `None`: the run is gone.
    async fn end_of(&mut self, store: &dyn Store, run_id: &str) -> Result<Option<(i64, Vec<TailBatch>)>, Error> {
        if let Some(known) = self.known.remove(run_id) {
            return Ok(Some(known));
        }
        let row = store.read_run(&self.key, run_id).await.map_err(|error| history::store_error(&error))?;
        let Some(row) = row else { return Ok(None) };
        let snapshot = RunSnapshot::decode(row.snapshot).map_err(|error| {
            tracing::error!(chain = ?self.key, %error, "stored execution cannot be read");
            Error::new(perdure_proto::Code::DataLoss, "stored execution is damaged")
        })?;
        Ok(Some((snapshot.info.map_or(1, |info| info.next_event_id), Vec::new())))
    }
}

/// The run that follows by continue-as-new.
fn continued_as(event: &HistoryEvent) -> Option<String> {
    match &event.attributes {
        Some(Attributes::WorkflowExecutionContinuedAsNewEventAttributes(a)) => Some(a.new_execution_run_id.clone()),
        _ => None,
    }
}

impl Core {
    /// The histories that the input at the head of the chain's queue needs have come.
    pub(crate) fn histories_read(&mut self, key: &ChainKey, result: Result<Vec<RunHistory>, Error>, now: Timestamp) {
        self.now = self.now.max(now);
        let Some(entry) = self.chains.get_mut(key) else { return };
        entry.loading = false;
        let result = result.and_then(|histories| {
            if histories.is_empty() { Err(Error::not_found("workflow execution not found")) } else { Ok(histories) }
        });
        match result {
            Ok(histories) => {
                if let Some(Pending::Call { command, .. }) = entry.queue.front_mut()
                    && let Command::Reset(reset) = &mut **command
                {
                    reset.histories = histories;
                }
            }
            Err(error) => {
                if let Some(Pending::Call { reply: Some(reply), .. }) = entry.queue.pop_front() {
                    let _ = reply.send(Err(error));
                }
            }
        }
        self.drain(key);
    }
}
