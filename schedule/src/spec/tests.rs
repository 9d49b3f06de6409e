use chrono::DateTime;
use perdure_proto::temporal::api::schedule::v1::CalendarSpec;
use proptest::prelude::*;

use super::*;

fn time(text: &str) -> Timestamp {
    let parsed = DateTime::parse_from_rfc3339(text).expect("a time");
    Timestamp(parsed.timestamp_nanos_opt().expect("in range"))
}

fn text(time: Timestamp) -> String {
    DateTime::from_timestamp_nanos(time.0).to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true)
}

fn cron(text: &str) -> ScheduleSpec {
    ScheduleSpec { cron_string: vec![text.to_owned()], ..ScheduleSpec::default() }
}

fn seconds(seconds: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos: 0 })
}

fn every(interval: i64, phase: i64) -> ScheduleSpec {
    let interval = IntervalSpec { interval: seconds(interval), phase: seconds(phase) };
    ScheduleSpec { interval: vec![interval], ..ScheduleSpec::default() }
}

fn compile(spec: &ScheduleSpec) -> Spec {
    Spec::compile(spec, "seed").expect("a specification")
}

/// The times after `after`, as far as they are listed; an empty text stands for the end.
fn check(spec: &ScheduleSpec, after: &str, expect: &[&str]) {
    let spec = compile(spec);
    let mut at = time(after);
    for expected in expect {
        match spec.next(at) {
            Next::At(found) => {
                assert_eq!(text(found.nominal), *expected);
                at = found.nominal;
            }
            other => assert!(expected.is_empty(), "{other:?} instead of {expected} after {}", text(at)),
        }
    }
}

#[test]
fn intervals() {
    check(&every(5400, 0), "2022-03-23T12:53:02.9Z", &["2022-03-23T13:30:00Z", "2022-03-23T15:00:00Z"]);
    check(&every(5400, 2100), "2022-03-23T12:53:02.9Z", &["2022-03-23T14:05:00Z", "2022-03-23T15:35:00Z"]);
    // A match of now is not after now.
    check(&every(3600, 0), "2022-03-23T13:00:00Z", &["2022-03-23T14:00:00Z"]);
    check(&every(28 * 86400, 3 * 86400 + 5 * 3600 + 23 * 60), "2022-02-18T00:00:00Z", &["2022-02-20T05:23:00Z"]);
    check(&every(1, 0), "2022-03-23T13:00:00.999Z", &["2022-03-23T13:00:01Z", "2022-03-23T13:00:02Z"]);
    check(&cron("@every 90m/35m"), "2022-03-23T12:53:02Z", &["2022-03-23T14:05:00Z"]);
}

#[test]
fn cron_strings() {
    let after = "2022-03-23T12:53:02Z";
    check(&cron("@hourly"), after, &["2022-03-23T13:00:00Z", "2022-03-23T14:00:00Z"]);
    check(&cron("@daily"), after, &["2022-03-24T00:00:00Z"]);
    check(&cron("@weekly"), after, &["2022-03-27T00:00:00Z", "2022-04-03T00:00:00Z"]);
    check(&cron("@monthly"), after, &["2022-04-01T00:00:00Z"]);
    check(&cron("@yearly"), after, &["2023-01-01T00:00:00Z"]);
    check(&cron("30 4 * * mon-fri"), after, &["2022-03-24T04:30:00Z", "2022-03-25T04:30:00Z", "2022-03-28T04:30:00Z"]);
    check(&cron("0 12 29 feb *"), after, &["2024-02-29T12:00:00Z", "2028-02-29T12:00:00Z"]);
    // Both days must match.
    check(&cron("0 0 13 * Fri"), after, &["2022-05-13T00:00:00Z", "2023-01-13T00:00:00Z"]);
    check(&cron("15 30 6 1 1 * 2030-2031"), after, &["2030-01-01T06:30:15Z", "2031-01-01T06:30:15Z", ""]);
    check(
        &cron("*/20 1,3 * * *"),
        after,
        &["2022-03-24T01:00:00Z", "2022-03-24T01:20:00Z", "2022-03-24T01:40:00Z", "2022-03-24T03:00:00Z"],
    );
    check(
        &cron("0 0 * * 5-7 # weekend"),
        after,
        &["2022-03-25T00:00:00Z", "2022-03-26T00:00:00Z", "2022-03-27T00:00:00Z", "2022-04-01T00:00:00Z"],
    );
    check(&cron("CRON_TZ=America/New_York 0 9 * * *"), after, &["2022-03-23T13:00:00Z"]);
    check(&cron("0 0 30 2 *"), after, &[""]);
}

#[test]
fn cron_strings_become_calendars() {
    let spec = compile(&cron("CRON_TZ=Europe/Berlin 30 2 * * 5-7 # hello"));
    let canonical = spec.canonical();
    assert_eq!(canonical.timezone_name, "Europe/Berlin");
    let range = |start, end, step| Range { start, end, step };
    let calendar = &canonical.structured_calendar[0];
    assert_eq!(calendar.comment, "hello");
    assert_eq!(calendar.second, [range(0, 0, 1)]);
    assert_eq!(calendar.minute, [range(30, 30, 1)]);
    assert_eq!(calendar.day_of_month, [range(1, 31, 1)]);
    assert_eq!(calendar.day_of_week, [range(0, 0, 1), range(5, 6, 1)]);
    assert!(calendar.year.is_empty() && canonical.cron_string.is_empty());
}

#[test]
fn what_is_refused() {
    let refused = |spec: &ScheduleSpec, expect: &str| {
        let error = Spec::compile(spec, "").map(|_| ()).expect_err(expect);
        assert!(error.contains(expect), "{error}");
    };
    refused(&cron("bogus"), "CronString does not have 5-7 fields");
    refused(&cron("61 * * * *"), "Minute is not in range [0-59]");
    refused(&cron("a * * * *"), "Minute is not in range [0-59]");
    refused(&cron("5/0 * * * *"), "Minute has invalid Step");
    refused(&cron("@every 1x"), "invalid duration");
    refused(&cron("@every 1é"), "invalid duration");
    refused(&cron("@everyé 1s"), "malformed");
    refused(&cron("CRON_TZ=Nowhere/X * * * * *"), "unknown time zone Nowhere/X");
    refused(&every(0, 0), "interval is too small");
    refused(&every(5, 5), "phase cannot be greater than Interval");
    let mut two = cron("CRON_TZ=Europe/Berlin * * * * *");
    two.cron_string.push("* * * * *".to_owned());
    refused(&two, "conflicting timezone names");
    let zone = ScheduleSpec { timezone_name: "Asia/Tokyo".to_owned(), ..cron("TZ=Europe/Berlin * * * * *") };
    refused(&zone, "conflicting timezone names");
    let calendar = StructuredCalendarSpec {
        hour: vec![Range { start: 24, end: 0, step: 0 }],
        ..StructuredCalendarSpec::default()
    };
    let spec = ScheduleSpec { structured_calendar: vec![calendar], ..ScheduleSpec::default() };
    refused(&spec, "invalid calendar spec: Hour Start is not in range [0-23]");
}

#[test]
fn clocks_that_change() {
    let daily = |time: &str| cron(&format!("CRON_TZ=America/New_York {time} * * *"));
    // Spring forward on 13 March 2022 at 2:00: there is no 2:30.
    check(&daily("30 2"), "2022-03-12T06:00:00Z", &["2022-03-12T07:30:00Z", "2022-03-14T06:30:00Z"]);
    check(&daily("30 1"), "2022-03-12T12:00:00Z", &["2022-03-13T06:30:00Z", "2022-03-14T05:30:00Z"]);
    check(&daily("30 3"), "2022-03-12T12:00:00Z", &["2022-03-13T07:30:00Z"]);
    // Back on 6 November 2022 at 2:00: 1:30 comes twice.
    check(
        &daily("30 1"),
        "2022-11-05T12:00:00Z",
        &["2022-11-06T05:30:00Z", "2022-11-06T06:30:00Z", "2022-11-07T06:30:00Z"],
    );
    check(&daily("30 2"), "2022-11-05T12:00:00Z", &["2022-11-06T07:30:00Z"]);
    let hourly = cron("CRON_TZ=America/New_York 0 * * * *");
    let hours = ["2022-11-06T05:00:00Z", "2022-11-06T06:00:00Z", "2022-11-06T07:00:00Z"];
    check(&hourly, "2022-11-06T04:00:00Z", &hours);
    // A change at midnight: that day begins at 1:00.
    let paulo = cron("CRON_TZ=America/Sao_Paulo 0 0 * * *");
    check(&paulo, "2018-11-03T12:00:00Z", &["2018-11-05T02:00:00Z"]);
    // Half an hour, at Lord Howe.
    let howe = cron("CRON_TZ=Australia/Lord_Howe 45 1 * * *");
    check(&howe, "2022-04-02T00:00:00Z", &["2022-04-02T14:45:00Z", "2022-04-02T15:15:00Z", "2022-04-03T15:15:00Z"]);
    // Samoa had no 30 December 2011.
    let samoa = cron("CRON_TZ=Pacific/Apia 0 12 29-31 12 *");
    check(&samoa, "2011-12-01T00:00:00Z", &["2011-12-29T22:00:00Z", "2011-12-30T22:00:00Z"]);
}

#[test]
fn ends_and_excludes() {
    let spec = ScheduleSpec {
        start_time: time("2022-03-23T12:00:00Z").to_proto(),
        end_time: time("2022-03-23T14:00:00Z").to_proto(),
        ..every(3600, 0)
    };
    check(&spec, "2020-01-01T00:00:00Z", &["2022-03-23T12:00:00Z", "2022-03-23T13:00:00Z", "2022-03-23T14:00:00Z", ""]);
    let weekend = CalendarSpec { hour: "*".into(), day_of_week: "sat,sun".into(), ..CalendarSpec::default() };
    #[allow(deprecated)]
    let spec = ScheduleSpec { exclude_calendar: vec![weekend], ..every(12 * 3600, 0) };
    check(&spec, "2022-03-25T00:00:00Z", &["2022-03-25T12:00:00Z", "2022-03-28T00:00:00Z"]);
    // Everything is excluded: the search rests, and says where.
    let all = CalendarSpec { second: "*".into(), minute: "*".into(), hour: "*".into(), ..CalendarSpec::default() };
    #[allow(deprecated)]
    let spec = compile(&ScheduleSpec { exclude_calendar: vec![all], ..every(1, 0) });
    let from = time("2022-03-25T00:00:00Z");
    let Next::NotBefore(later) = spec.next(from) else { panic!("a search without end") };
    assert!(later > from);
}

#[test]
fn given_zones_are_read() {
    // "UTC+3" as a TZif file of version 1: no transitions, one type.
    let mut data = b"TZif\0".to_vec();
    data.extend([0; 15]);
    for count in [0_u32, 0, 0, 0, 1, 4] {
        data.extend(count.to_be_bytes());
    }
    data.extend(10_800_i32.to_be_bytes());
    data.extend([0, 0]);
    data.extend(b"XXX\0");
    let spec = ScheduleSpec { timezone_data: data.into(), ..cron("0 9 * * *") };
    check(&spec, "2022-03-23T12:00:00Z", &["2022-03-24T06:00:00Z"]);
    let spec = ScheduleSpec { timezone_data: b"junk".as_slice().into(), ..cron("0 9 * * *") };
    assert!(Spec::compile(&spec, "").is_err());
}

const ZONES: [&str; 6] =
    ["UTC", "America/New_York", "Europe/Berlin", "Australia/Lord_Howe", "Pacific/Apia", "America/Sao_Paulo"];

fn field(max: i32) -> impl Strategy<Value = String> {
    prop_oneof![
        2 => Just("*".to_owned()),
        3 => (0..=max).prop_map(|n| n.to_string()),
        1 => (0..=max, 1..10).prop_map(|(n, step)| format!("{n}/{step}")),
        1 => (0..=max).prop_flat_map(move |a| (Just(a), a..=max)).prop_map(|(a, b)| format!("{a}-{b}")),
    ]
}

proptest! {
    /// The next time is later, matches, has nothing that matches before it, and is the next of every time until it.
    #[test]
    fn next_is_the_first_match(
        (minute, hour, weekday) in (field(59), field(23), field(6)),
        zone in 0..ZONES.len(),
        start in 1_262_304_000_i64..1_704_067_200,
        probe in 0.0..1.0_f64,
    ) {
        let spec = compile(&cron(&format!("CRON_TZ={} {minute} {hour} * * {weekday}", ZONES[zone])));
        let Next::At(found) = spec.next(at_second(start)) else { return Err(TestCaseError::fail("no time")) };
        let next = found.nominal.0 / NANOS;
        prop_assert!(next > start);
        prop_assert!(spec.calendars[0].matches(&spec.zone, next));
        let within = start + ((next - start) as f64 * probe) as i64;
        prop_assert!(within == next || within == start || !spec.calendars[0].matches(&spec.zone, within));
        if within < next {
            prop_assert_eq!(spec.next(at_second(within)), Next::At(found));
        }
        // Minute by minute, for a while.
        for minute in (start / 60 + 1)..(next / 60).min(start / 60 + 3000) {
            prop_assert!(!spec.calendars[0].matches(&spec.zone, minute * 60), "{} is left out", minute * 60);
        }
    }

    /// Jitter keeps the order, and the same seed gives the same times.
    #[test]
    fn jitter_keeps_the_order(interval in 1_i64..100_000, jitter in 0_i64..1_000_000, start in 0_i64..2_000_000_000) {
        let spec = ScheduleSpec { jitter: seconds(jitter), ..every(interval, 0) };
        let (spec, again) = (compile(&spec), compile(&spec));
        let mut at = at_second(start);
        let mut nominal = at;
        for _ in 0..20 {
            let Next::At(found) = spec.next(at) else { return Err(TestCaseError::fail("no time")) };
            prop_assert_eq!(again.next(at), Next::At(found));
            prop_assert!(found.nominal > nominal && found.actual >= found.nominal && found.actual > at);
            // Going on from the jittered time leaves none out.
            prop_assert!(nominal == at_second(start) || found.nominal == nominal + Duration::from_secs(interval));
            (at, nominal) = (found.actual, found.nominal);
        }
    }

    /// No text breaks the parser.
    #[test]
    fn any_text_is_parsed_or_refused(text in "\\PC{0,30}", fields in "[-*/0-9a-zA-Z,@# =é]{0,40}") {
        let _ = Spec::compile(&cron(&text), "").map(|spec| spec.next(Timestamp(0)));
        let _ = Spec::compile(&cron(&fields), "").map(|spec| spec.next(Timestamp(0)));
    }
}
