//! Holding back what may not be seen yet, and letting it go (SH-2).

use std::collections::{BTreeMap, BTreeSet};

use perdure_proto::{
    Error,
    perdure::node::v1::{
        TaskToken, TaskUndelivered, WorkflowReply, workflow_call::Command, workflow_reply::Reply as Message_,
    },
};
use perdure_types::{ChainKey, PollName, Timestamp};
use perdure_workflow::{Effect, Reply};
use prost::Message;

use super::{Core, Output};
use crate::{
    entry::{Pending, ReplyTo},
    history::PageJob,
    trace::Caller,
};

/// Something that waits for coverage.
enum What {
    Reply(ReplyTo, Result<Box<Reply>, Error>),
    Page(ReplyTo, PageJob),
    Effects(Vec<Effect>),
}

/// What is held back, by (tickets that must be covered, fence read that must have found the session live).
#[derive(Default)]
pub(super) struct HeldBack(BTreeMap<(u64, u64), Vec<(ChainKey, What)>>);

impl HeldBack {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// There are few groups: what waits for the same row is one.
    pub(super) fn len(&self) -> usize {
        self.0.values().map(Vec::len).sum()
    }

    pub(super) fn fail_all(&mut self, error: &Error) {
        for (_, what) in std::mem::take(&mut self.0).into_values().flatten() {
            match what {
                What::Reply(reply, _) | What::Page(reply, _) => {
                    let _ = reply.send(Err(error.clone()));
                }
                What::Effects(_) => {}
            }
        }
    }

    /// Takes all that a coverage allows, in order of tickets.
    fn take_ready(&mut self, covered: u64, fence: u64) -> Vec<(ChainKey, What)> {
        let ready: Vec<(u64, u64)> =
            self.0.range(..=(covered, u64::MAX)).map(|(key, _)| *key).filter(|(_, needs)| *needs <= fence).collect();
        ready.into_iter().filter_map(|key| self.0.remove(&key)).flatten().collect()
    }
}

impl Core {
    pub(super) fn hold_reply(
        &mut self,
        key: &ChainKey,
        after: u64,
        fence: u64,
        reply: ReplyTo,
        outcome: Result<Box<Reply>, Error>,
    ) {
        self.hold(key, after, fence, What::Reply(reply, outcome));
    }

    pub(super) fn hold_page(&mut self, key: &ChainKey, after: u64, fence: u64, reply: ReplyTo, job: PageJob) {
        self.hold(key, after, fence, What::Page(reply, job));
    }

    pub(super) fn hold_effects(&mut self, key: &ChainKey, after: u64, effects: Vec<Effect>) {
        self.hold(key, after, 0, What::Effects(effects));
    }

    fn hold(&mut self, key: &ChainKey, after: u64, fence: u64, what: What) {
        if after <= self.log.covered_tickets() && fence <= self.log.fence_reads_live() {
            self.release(key, what);
            return;
        }
        if let Some(entry) = self.chains.get_mut(key) {
            entry.held += 1;
        }
        self.held.0.entry((after, fence)).or_default().push((key.clone(), what));
    }

    /// The log has covered more, or a fence read was answered.
    pub(crate) fn on_covered(&mut self, now: Timestamp) {
        self.now = self.now.max(now);
        let ready = self.held.take_ready(self.log.covered_tickets(), self.log.fence_reads_live());
        for (key, what) in ready {
            if let Some(entry) = self.chains.get_mut(&key) {
                entry.held -= 1;
            }
            self.release(&key, what);
        }
    }

    fn release(&mut self, key: &ChainKey, what: What) {
        match what {
            What::Effects(effects) => {
                for effect in effects {
                    self.release_effect(key, effect);
                }
            }
            What::Page(reply, job) => self.release_page(key, job, reply),
            What::Reply(reply, Err(error)) => {
                let _ = reply.send(Err(error));
            }
            What::Reply(reply, Ok(answer)) => {
                if reply.is_closed() {
                    self.undelivered(key, &answer.message);
                    return;
                }
                let Reply { message, history } = *answer;
                match history {
                    Some(fill) => {
                        let job = PageJob::fill(message, fill, &self.node.config.limits);
                        self.release_page(key, job, reply);
                    }
                    None => {
                        let _ = reply.send(Ok(message));
                    }
                }
            }
        }
    }

    fn release_page(&mut self, key: &ChainKey, mut job: PageJob, reply: ReplyTo) {
        if let Some(run) = self.chains.get(key).and_then(|entry| entry.runs.get(&job.run_id)) {
            job.take_tail(run.tail.iter());
        }
        if job.is_in_memory() {
            let _ = reply.send(job.finish_in_memory());
        } else {
            self.out.push(Output::ReadHistory { chain: key.clone(), job, reply });
        }
    }

    fn release_effect(&mut self, key: &ChainKey, effect: Effect) {
        match effect {
            Effect::Offer(offer) => self.out.push(Output::Offer(offer)),
            Effect::Call { id, call } => {
                let is_new = self.chains.get_mut(key).is_some_and(|entry| entry.calls.insert(id.clone()));
                if is_new {
                    self.out.push(Output::Call { chain: key.clone(), id, call });
                }
            }
        }
    }

    /// The poll that a task was started for is gone: offer the task again at once.
    fn undelivered(&mut self, key: &ChainKey, message: &WorkflowReply) {
        let token = match &message.reply {
            Some(Message_::WorkflowTask(task)) => &task.task_token,
            Some(Message_::ActivityTask(task)) => &task.task_token,
            _ => return,
        };
        if let Ok(token) = TaskToken::decode(token.as_ref()) {
            self.offer_undelivered(key.clone(), token);
        }
    }

    fn offer_undelivered(&mut self, key: ChainKey, token: TaskToken) {
        let command = Command::TaskUndelivered(TaskUndelivered { token: Some(token) });
        self.enqueue(key, Pending::Call { command: Box::new(command), reply: None, caller: Caller::default() });
    }

    /// No task that was started for one of these polls has reached a worker: they are offered again at once. A start that is
    /// news to somebody is in memory still: recovery has just read it in a log.
    pub(crate) fn polls_lost(&mut self, polls: &BTreeSet<PollName>, now: Timestamp) {
        self.now = self.now.max(now);
        let mut found = Vec::new();
        for (key, entry) in &self.chains {
            let tokens = entry.chain.iter().flat_map(|chain| chain.started_for(polls));
            found.extend(tokens.map(|token| (key.clone(), token)));
        }
        for (key, token) in found {
            self.offer_undelivered(key, token);
        }
    }
}
