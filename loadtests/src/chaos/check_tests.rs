//! The checker must find what is wrong: each test doctors a story that is right.

use super::check::check;
use super::journal::{Call, Outcome, What};
use super::story::{Event, Kind, Run};

const ID: &str = "w";

fn call(what: What, invoked_ns: u64, outcome: Outcome) -> Call {
    Call { workflow_id: ID.to_owned(), what, invoked_ns, answered_ns: invoked_ns + 5, attempts: 1, outcome }
}

fn done(text: &str) -> Outcome {
    Outcome::Done(text.to_owned())
}

fn unknown() -> Outcome {
    Outcome::Unknown("lost".to_owned())
}

fn refused() -> Outcome {
    Outcome::Refused("no".to_owned())
}

fn start(request_id: &str, outcome: Outcome) -> Call {
    call(What::Start { request_id: request_id.to_owned() }, 0, outcome)
}

fn activity(run_id: &str, activity_id: &str, result: u64, outcome: Outcome) -> Call {
    call(What::Activity { run_id: run_id.to_owned(), activity_id: activity_id.to_owned(), result }, 30, outcome)
}

fn update(number: u64, outcome: Outcome) -> Call {
    call(What::Update { update_id: format!("u{number}"), number }, 40, outcome)
}

fn run(run_id: &str, kinds: Vec<Kind>) -> Run {
    let event = |(index, kind)| Event { id: index as i64 + 1, time_ns: index as i64 * 1000, kind };
    let events = kinds.into_iter().enumerate().map(event).collect();
    Run { workflow_id: ID.to_owned(), run_id: run_id.to_owned(), events }
}

fn started(continued_from: Option<&str>) -> Kind {
    Kind::Started { continued_from: continued_from.map(str::to_owned), first_run: "r1".to_owned() }
}

fn closed(next_run: Option<&str>) -> Kind {
    Kind::Closed { next_run: next_run.map(str::to_owned) }
}

fn signaled(number: u64) -> Kind {
    Kind::Signaled { number: Some(number) }
}

/// A workflow of two runs, as it should be: the second start of the id was refused, the second result of an activity too.
fn right() -> (Vec<Call>, Vec<Run>) {
    let calls = vec![
        start("a", done("r1")),
        start("b", refused()),
        call(What::Signal { number: 1 }, 10, done("")),
        call(What::Signal { number: 2 }, 20, done("")),
        activity("r1", "0", 7, done("")),
        activity("r1", "0", 8, refused()),
        update(3, done("3")),
    ];
    let first = vec![
        started(None),
        signaled(1),
        Kind::ActivityScheduled { activity_id: "0".to_owned() },
        Kind::ActivityClosed { scheduled: 3, result: Some(7) },
        closed(Some("r2")),
    ];
    let second = vec![
        started(Some("r1")),
        signaled(2),
        Kind::UpdateAccepted { update_id: "u3".to_owned() },
        Kind::UpdateCompleted { update_id: "u3".to_owned(), result: Some(3) },
        Kind::TimerStarted { timer_id: "4".to_owned(), after_ns: 1000 },
        Kind::TimerFired { started: 5 },
        closed(None),
    ];
    (calls, vec![run("r1", first), run("r2", second)])
}

/// The rules that a doctored story breaks.
fn broken(doctor: impl FnOnce(&mut Vec<Call>, &mut Vec<Run>)) -> Vec<&'static str> {
    let (mut calls, mut runs) = right();
    doctor(&mut calls, &mut runs);
    let mut rules: Vec<&str> = check(&calls, &runs).into_iter().map(|violation| violation.rule).collect();
    rules.dedup();
    rules
}

/// Numbers the events again.
fn renumber(run: &mut Run) {
    for (index, event) in run.events.iter_mut().enumerate() {
        event.id = index as i64 + 1;
    }
}

#[test]
fn what_is_right_is_right() {
    assert_eq!(broken(|_, _| {}), Vec::<&str>::new());
    // What nobody was told may have happened, or not.
    assert_eq!(broken(|calls, _| calls[2].outcome = unknown()), Vec::<&str>::new());
    assert_eq!(broken(|calls, _| calls.push(call(What::Signal { number: 9 }, 50, unknown()))), Vec::<&str>::new());
    assert_eq!(broken(|calls, _| calls[6].outcome = unknown()), Vec::<&str>::new());
}

#[test]
fn a_second_start_is_found() {
    let other = |runs: &mut Vec<Run>| runs.push(run("r9", vec![started(None), closed(None)]));
    assert_eq!(broken(|_, runs| other(runs)), ["start"]);
    assert_eq!(broken(|calls, _| calls[1].outcome = done("r1")), ["start"]);
    let both = |calls: &mut Vec<Call>, runs: &mut Vec<Run>| {
        calls[1].outcome = done("r9");
        other(runs);
    };
    assert_eq!(broken(both), ["start"]);
}

#[test]
fn a_lost_start_is_found() {
    let lost = |calls: &mut Vec<Call>, runs: &mut Vec<Run>| {
        calls.truncate(1);
        runs.clear();
    };
    assert_eq!(broken(lost), ["start"]);
    assert_eq!(broken(|calls, _| calls[0].outcome = refused()), ["start"]);
}

#[test]
fn a_lost_a_doubled_and_an_invented_signal_are_found() {
    assert_eq!(broken(|_, runs| runs[0].events[1].kind = Kind::Other), ["signal"]);
    assert_eq!(broken(|_, runs| runs[1].events[2].kind = signaled(2)), ["signal", "update"]);
    assert_eq!(broken(|_, runs| runs[0].events[2].kind = signaled(77)), ["signal"]);
    assert_eq!(broken(|calls, _| calls[3].outcome = refused()), ["signal"]);
}

#[test]
fn signals_in_the_wrong_order_are_found() {
    let swap = |_: &mut Vec<Call>, runs: &mut Vec<Run>| {
        runs[0].events[1].kind = signaled(2);
        runs[1].events[1].kind = signaled(1);
    };
    assert_eq!(broken(swap), ["signal"]);
    // Two that were under way at once may come in any order.
    let at_once = |calls: &mut Vec<Call>, runs: &mut Vec<Run>| {
        calls[3].invoked_ns = 12;
        swap(calls, runs);
    };
    assert_eq!(broken(at_once), Vec::<&str>::new());
}

#[test]
fn a_lost_and_a_doubled_update_are_found() {
    assert_eq!(broken(|_, runs| runs[1].events[3].kind = Kind::Other), ["update"]);
    assert_eq!(broken(|_, runs| runs[1].events[2].kind = Kind::Other), ["update"]);
    let again = |_: &mut Vec<Call>, runs: &mut Vec<Run>| {
        let twice = [runs[1].events[2].clone(), runs[1].events[3].clone()];
        runs[1].events.splice(2..2, twice);
        renumber(&mut runs[1]);
        // Events moved, and the timer's reference with them.
        runs[1].events.iter_mut().for_each(|event| {
            if let Kind::TimerFired { started } = &mut event.kind {
                *started += 2;
            }
        });
    };
    assert!(broken(again).contains(&"update"));
    let other = Kind::UpdateCompleted { update_id: "u3".to_owned(), result: Some(4) };
    assert_eq!(broken(|_, runs| runs[1].events[3].kind = other), ["update"]);
    assert_eq!(broken(|calls, _| calls[6].outcome = done("4")), ["update"]);
}

#[test]
fn gaps_and_disorder_in_a_history_are_found() {
    assert_eq!(broken(|_, runs| runs[1].events[1].id = 3), ["history"]);
    assert_eq!(broken(|_, runs| runs[1].events[1].time_ns = -1), ["history"]);
    let beheaded = |_: &mut Vec<Call>, runs: &mut Vec<Run>| {
        runs[0].events.remove(0);
        renumber(&mut runs[0]);
    };
    assert!(broken(beheaded).contains(&"history"));
    let goes_on = |_: &mut Vec<Call>, runs: &mut Vec<Run>| {
        let event = Event { id: 8, time_ns: 9_000_000, kind: Kind::Other };
        runs[1].events.push(event);
    };
    assert_eq!(broken(goes_on), ["history"]);
}

#[test]
fn runs_beside_each_other_are_found() {
    assert_eq!(broken(|_, runs| runs[0].events[4].kind = Kind::Other), ["open", "end"]);
    assert_eq!(broken(|_, runs| runs.push(run("r3", vec![started(Some("r1")), closed(None)]))), ["open"]);
    let both_open = |_: &mut Vec<Call>, runs: &mut Vec<Run>| {
        runs[0].events[4].kind = Kind::Other;
        runs[1].events[6].kind = Kind::Other;
    };
    assert_eq!(broken(both_open), ["open", "end"]);
    // The successor got lost: with its signal, its update and its timer.
    assert!(broken(|_, runs| runs.truncate(1)).contains(&"open"));
}

#[test]
fn a_workflow_that_does_not_end_is_found() {
    assert_eq!(broken(|_, runs| runs[1].events[6].kind = Kind::Other), ["end"]);
}

#[test]
fn a_result_that_was_accepted_twice_is_found() {
    let again = Kind::ActivityClosed { scheduled: 3, result: Some(8) };
    assert_eq!(broken(|_, runs| runs[1].events[1].kind = again.clone()), ["signal", "activity"]);
    let in_one_run = |_: &mut Vec<Call>, runs: &mut Vec<Run>| {
        let event = Event { id: 5, time_ns: 3500, kind: again };
        runs[0].events.insert(4, event);
        renumber(&mut runs[0]);
    };
    assert_eq!(broken(in_one_run), ["activity"]);
    assert_eq!(broken(|calls, _| calls[5].outcome = done("")), ["activity"]);
}

#[test]
fn a_result_that_was_lost_is_found() {
    let lost = Kind::ActivityClosed { scheduled: 3, result: None };
    assert_eq!(broken(|_, runs| runs[0].events[3].kind = lost), ["activity"]);
    let again = Kind::ActivityScheduled { activity_id: "0".to_owned() };
    assert_eq!(broken(|_, runs| runs[0].events[1].kind = again), ["signal", "activity"]);
}

#[test]
fn timers_that_fire_early_twice_or_never_are_found() {
    let late = Kind::TimerStarted { timer_id: "4".to_owned(), after_ns: 1001 };
    assert_eq!(broken(|_, runs| runs[1].events[4].kind = late), ["timer"]);
    assert_eq!(broken(|_, runs| runs[1].events[5].kind = Kind::Other), ["timer"]);
    let twice = |_: &mut Vec<Call>, runs: &mut Vec<Run>| {
        let event = runs[1].events[5].clone();
        runs[1].events.insert(6, event);
        renumber(&mut runs[1]);
    };
    assert_eq!(broken(twice), ["timer"]);
}
