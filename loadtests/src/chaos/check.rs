//! The checker: reads the journal of the clients beside the histories of the server, and finds where the server did not
//! keep its word. Pure.
//!
//! What is promised, by rule:
//! - `start`: an id was started once, by one of the calls that asked for it; an acknowledged start names that run.
//! - `signal`, `update`: an acknowledged one is in one history, once; one of unknown outcome at most once; a refused one
//!   nowhere; nothing is there that nobody sent. Of two signals, one acknowledged before the other was sent comes first.
//! - `history`: events are numbered from 1 without a gap, their times never go back, and the first is the start.
//! - `open`: an id's runs form one chain, each continued by the next; only the last may be open.
//! - `activity`: one result at most is accepted, acknowledged results are in the history, and no other.
//! - `timer`: each fired once, and not early; in a closed run each had the time to.
//! - `end`: by the end of the run every workflow has closed.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::journal::{Call, Outcome, What};
use super::story::{Kind, Run};

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Violation {
    pub rule: &'static str,
    pub workflow_id: String,
    pub what: String,
}

/// Everything that is wrong; nothing if the server kept its word.
pub fn check(calls: &[Call], runs: &[Run]) -> Vec<Violation> {
    let mut by_id: BTreeMap<&str, (Vec<&Call>, Vec<&Run>)> = BTreeMap::new();
    for call in calls {
        by_id.entry(&call.workflow_id).or_default().0.push(call);
    }
    for run in runs {
        by_id.entry(&run.workflow_id).or_default().1.push(run);
    }
    let mut found = Vec::new();
    for (workflow_id, (calls, runs)) in by_id {
        let mut one = One { workflow_id, calls, runs, found: &mut found };
        one.starts();
        one.histories();
        one.chain();
        one.signals();
        one.updates();
        one.activities();
        one.timers();
    }
    found
}

/// One workflow id.
struct One<'a> {
    workflow_id: &'a str,
    calls: Vec<&'a Call>,
    runs: Vec<&'a Run>,
    found: &'a mut Vec<Violation>,
}

/// What the clients know of something that was to happen once.
#[derive(Clone, Copy)]
struct Sent<'a> {
    call: &'a Call,
}

impl Sent<'_> {
    /// How often it may have happened.
    fn allows(&self, times: usize) -> bool {
        match self.call.outcome {
            Outcome::Done(_) => times == 1,
            Outcome::Refused(_) => times == 0,
            Outcome::Unknown(_) => times <= 1,
        }
    }

    fn word(&self) -> &'static str {
        match self.call.outcome {
            Outcome::Done(_) => "acknowledged",
            Outcome::Refused(_) => "refused",
            Outcome::Unknown(_) => "of unknown outcome",
        }
    }
}

impl<'a> One<'a> {
    fn wrong(&mut self, rule: &'static str, what: String) {
        self.found.push(Violation { rule, workflow_id: self.workflow_id.to_owned(), what });
    }

    fn starts(&mut self) {
        let firsts: Vec<&str> =
            self.runs.iter().filter(|run| run.continued_from().is_none()).map(|run| run.run_id.as_str()).collect();
        let starts = || self.calls.iter().filter(|call| matches!(call.what, What::Start { .. }));
        let acknowledged: BTreeSet<&str> = starts()
            .filter_map(|call| match &call.outcome {
                Outcome::Done(run_id) => Some(run_id.as_str()),
                Outcome::Refused(_) | Outcome::Unknown(_) => None,
            })
            .collect();
        // The same request may be acknowledged to who asks again; two requests may not both have started it.
        let winners: BTreeSet<&String> = starts()
            .filter(|call| matches!(call.outcome, Outcome::Done(_)))
            .filter_map(|call| match &call.what {
                What::Start { request_id } => Some(request_id),
                What::Signal { .. } | What::Update { .. } | What::Activity { .. } => None,
            })
            .collect();
        let possible = starts().any(|call| !matches!(call.outcome, Outcome::Refused(_)));
        let (winners, first_count) = (winners.len(), firsts.len());
        let lost: Vec<String> =
            acknowledged.iter().filter(|run_id| !firsts.contains(run_id)).map(ToString::to_string).collect();
        if first_count > 1 {
            self.wrong("start", format!("started {first_count} times: {}", firsts.join(", ")));
        }
        if acknowledged.len() > 1 || winners > 1 {
            self.wrong("start", format!("{winners} starts were acknowledged, with {} runs", acknowledged.len()));
        }
        for run_id in lost {
            self.wrong("start", format!("the acknowledged run {run_id} is not there"));
        }
        if first_count > 0 && !possible {
            self.wrong("start", "it runs though no start went through".to_owned());
        }
    }

    fn histories(&mut self) {
        for run in self.runs.clone() {
            let mut time_ns = i64::MIN;
            for (index, event) in run.events.iter().enumerate() {
                let expected = index as i64 + 1;
                if event.id != expected {
                    self.wrong("history", format!("run {}: event {} where {expected} is due", run.run_id, event.id));
                    break;
                }
                if event.time_ns < time_ns {
                    self.wrong(
                        "history",
                        format!("run {}: event {} is older than the one before", run.run_id, event.id),
                    );
                }
                time_ns = event.time_ns;
            }
            let starts = run.events.iter().filter(|event| matches!(event.kind, Kind::Started { .. })).count();
            if starts != 1 || !matches!(run.events.first().map(|event| &event.kind), Some(Kind::Started { .. })) {
                self.wrong("history", format!("run {} has {starts} starts, or not as its first event", run.run_id));
            }
            let closes: Vec<usize> =
                (0..run.events.len()).filter(|at| matches!(run.events[*at].kind, Kind::Closed { .. })).collect();
            if closes.len() > 1 || closes.iter().any(|at| at + 1 != run.events.len()) {
                self.wrong("history", format!("run {} goes on after its close", run.run_id));
            }
        }
    }

    /// The runs of an id, one after the other.
    fn chain(&mut self) {
        let by_id: HashMap<&str, &Run> = self.runs.iter().map(|run| (run.run_id.as_str(), *run)).collect();
        let mut successors: HashMap<&str, usize> = HashMap::new();
        for run in self.runs.clone() {
            if let Some(before) = run.continued_from() {
                *successors.entry(before).or_default() += 1;
                match by_id.get(before).map(|run| next_of(run)) {
                    None => self.wrong("open", format!("run {} continues {before}, which is not there", run.run_id)),
                    Some(next) if next == Some(run.run_id.as_str()) => {}
                    Some(next) => {
                        self.wrong("open", format!("run {} continues {before}, which names {next:?}", run.run_id));
                    }
                }
            }
            match next_of(run) {
                Some(next) if !by_id.contains_key(next) => {
                    self.wrong("open", format!("run {} is continued by {next}, which is not there", run.run_id));
                }
                Some(_) | None => {}
            }
        }
        for (run_id, count) in successors {
            if count > 1 {
                self.wrong("open", format!("run {run_id} is continued {count} times"));
            }
        }
        let open = self.runs.iter().filter(|run| run.is_open()).count();
        if open > 1 {
            self.wrong("open", format!("{open} runs are open"));
        }
        if open > 0 {
            self.wrong("end", "it has not closed".to_owned());
        }
    }

    fn signals(&mut self) {
        let mut places: BTreeMap<u64, Vec<(usize, i64)>> = BTreeMap::new();
        let order = self.order();
        for run in self.runs.clone() {
            for event in &run.events {
                match event.kind {
                    Kind::Signaled { number: Some(number) } => {
                        places.entry(number).or_default().push((order[run.run_id.as_str()], event.id));
                    }
                    Kind::Signaled { number: None } => {
                        self.wrong("signal", format!("run {}: a signal that nobody sent", run.run_id));
                    }
                    _ => {}
                }
            }
        }
        let mut sent = BTreeMap::new();
        for call in &self.calls {
            if let What::Signal { number } = call.what {
                sent.insert(number, Sent { call });
            }
        }
        self.compare("signal", &sent, &places.iter().map(|(number, places)| (*number, places.len())).collect());
        // What was acknowledged first was there first.
        let mut acknowledged: Vec<(&Call, (usize, i64))> = sent
            .iter()
            .filter(|(_, sent)| matches!(sent.call.outcome, Outcome::Done(_)))
            .filter_map(|(number, sent)| Some((sent.call, *places.get(number)?.first()?)))
            .collect();
        acknowledged.sort_by_key(|(_, place)| *place);
        let mut latest_invoked_ns = 0;
        for (call, place) in acknowledged {
            if call.answered_ns < latest_invoked_ns {
                self.wrong("signal", format!("the one at {place:?} comes after one that was sent later"));
            }
            latest_invoked_ns = latest_invoked_ns.max(call.invoked_ns);
        }
    }

    /// The place of each run in the chain.
    fn order(&self) -> HashMap<&'a str, usize> {
        let by_id: HashMap<&str, &'a Run> = self.runs.iter().map(|run| (run.run_id.as_str(), *run)).collect();
        let depth = |run: &Run| {
            let mut depth = 0;
            let mut before = run.continued_from();
            while let Some(run_id) = before
                && depth <= by_id.len()
            {
                depth += 1;
                before = by_id.get(run_id).and_then(|run| run.continued_from());
            }
            depth
        };
        self.runs.iter().map(|run| (run.run_id.as_str(), depth(run))).collect()
    }

    fn updates(&mut self) {
        let mut accepted: BTreeMap<String, usize> = BTreeMap::new();
        let mut completed: BTreeMap<String, Vec<Option<u64>>> = BTreeMap::new();
        for run in &self.runs {
            for event in &run.events {
                match &event.kind {
                    Kind::UpdateAccepted { update_id } => *accepted.entry(update_id.clone()).or_default() += 1,
                    Kind::UpdateCompleted { update_id, result } => {
                        completed.entry(update_id.clone()).or_default().push(*result);
                    }
                    _ => {}
                }
            }
        }
        let mut sent = BTreeMap::new();
        for call in &self.calls {
            if let What::Update { update_id, .. } = &call.what {
                sent.insert(update_id.clone(), Sent { call });
            }
        }
        self.compare("update", &sent, &accepted);
        self.compare("update", &sent, &completed.iter().map(|(id, results)| (id.clone(), results.len())).collect());
        for (update_id, sent) in &sent {
            let What::Update { number, .. } = sent.call.what else { continue };
            if completed.get(update_id).is_some_and(|results| results.iter().any(|result| *result != Some(number))) {
                self.wrong("update", format!("{update_id} has another result than its own"));
            }
            if matches!(&sent.call.outcome, Outcome::Done(answer) if *answer != number.to_string()) {
                self.wrong("update", format!("the answer to {update_id} was not its own"));
            }
        }
    }

    /// Compares what was sent with how often it is in the histories.
    fn compare<K: Ord + std::fmt::Debug>(
        &mut self,
        rule: &'static str,
        sent: &BTreeMap<K, Sent<'_>>,
        found: &BTreeMap<K, usize>,
    ) {
        for (key, sent) in sent {
            let times = found.get(key).copied().unwrap_or(0);
            if !sent.allows(times) {
                self.wrong(rule, format!("{key:?}, {}, is there {times} times", sent.word()));
            }
        }
        for key in found.keys().filter(|key| !sent.contains_key(key)) {
            self.wrong(rule, format!("{key:?} is there, and nobody sent it"));
        }
    }

    fn activities(&mut self) {
        let mut results: BTreeMap<u64, usize> = BTreeMap::new();
        for run in self.runs.clone() {
            let mut closed: BTreeMap<i64, usize> = BTreeMap::new();
            let mut ids: BTreeMap<&str, usize> = BTreeMap::new();
            for event in &run.events {
                match &event.kind {
                    Kind::ActivityScheduled { activity_id } => *ids.entry(activity_id).or_default() += 1,
                    Kind::ActivityClosed { scheduled, result } => {
                        *closed.entry(*scheduled).or_default() += 1;
                        result.iter().for_each(|result| *results.entry(*result).or_default() += 1);
                    }
                    _ => {}
                }
            }
            for (scheduled, times) in closed.into_iter().filter(|(_, times)| *times > 1) {
                self.wrong("activity", format!("run {}: the one of event {scheduled} ended {times} times", run.run_id));
            }
            for (activity_id, times) in ids.into_iter().filter(|(_, times)| *times > 1) {
                self.wrong("activity", format!("run {}: {activity_id} was scheduled {times} times", run.run_id));
            }
        }
        let mut sent = BTreeMap::new();
        let mut accepted: BTreeMap<(&str, &str), usize> = BTreeMap::new();
        for call in self.calls.clone() {
            if let What::Activity { run_id, activity_id, result } = &call.what {
                sent.insert(*result, Sent { call });
                if matches!(call.outcome, Outcome::Done(_)) {
                    *accepted.entry((run_id, activity_id)).or_default() += 1;
                }
            }
        }
        self.compare("activity", &sent, &results);
        for ((run_id, activity_id), times) in accepted.into_iter().filter(|(_, times)| *times > 1) {
            self.wrong("activity", format!("run {run_id}: {times} results of {activity_id} were accepted"));
        }
    }

    fn timers(&mut self) {
        for run in self.runs.clone() {
            let mut pending: BTreeMap<i64, i64> = BTreeMap::new();
            for event in &run.events {
                match &event.kind {
                    Kind::TimerStarted { after_ns, .. } => {
                        pending.insert(event.id, event.time_ns.saturating_add(*after_ns));
                    }
                    Kind::TimerFired { started } => match pending.remove(started) {
                        None => self.wrong("timer", format!("run {}: that of event {started} fired again", run.run_id)),
                        Some(due_ns) if event.time_ns < due_ns => {
                            self.wrong("timer", format!("run {}: that of event {started} fired early", run.run_id));
                        }
                        Some(_) => {}
                    },
                    _ => {}
                }
            }
            // The script waits for each of its timers.
            if !run.is_open() && !pending.is_empty() {
                self.wrong("timer", format!("run {}: {} never fired", run.run_id, pending.len()));
            }
        }
    }
}

fn next_of(run: &Run) -> Option<&str> {
    run.events.iter().find_map(|event| match &event.kind {
        Kind::Closed { next_run } => next_run.as_deref(),
        _ => None,
    })
}
