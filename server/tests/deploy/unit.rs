//! The systemd unit and its configuration file.

use std::{collections::BTreeMap, process::Command};

use crate::{path, settings, text};

const FILE: &str = "deploy/systemd/perdure.service";
const INSTALLED: &str = "/etc/perdure/perdure.toml";
const PROGRAM: &str = "/usr/local/bin/perdure";

fn values<'a>(unit: &'a str, name: &str) -> Vec<&'a str> {
    unit.lines().filter_map(|line| line.split_once('=')).filter(|(found, _)| *found == name).map(|(_, v)| v).collect()
}

#[test]
fn the_server_accepts_what_the_unit_gives_it() {
    let unit = text(FILE);
    let environment: BTreeMap<String, String> = values(&unit, "Environment")
        .into_iter()
        .map(|pair| pair.split_once('=').unwrap())
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let config = path("deploy/systemd/perdure.toml").display().to_string();
    for (line, command) in [("ExecStart", &["server"][..]), ("ExecStartPre", &["config", "check"])] {
        let words: Vec<&str> = values(&unit, line)[0].split_whitespace().collect();
        assert_eq!((words[0], &words[1..=command.len()]), (PROGRAM, command));
        let rest = words[1 + command.len()..].iter().map(|word| word.replace(INSTALLED, &config));
        settings::accepted(&rest.collect::<Vec<_>>(), &environment);
    }
}

#[test]
fn systemd_accepts_the_unit() {
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        println!("systemd-analyze is not installed: the unit was not verified");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let copy = directory.path().join("perdure.service");
    // It also looks whether the program is there.
    std::fs::write(&copy, text(FILE).replace(PROGRAM, "/bin/true")).unwrap();
    let output = Command::new("systemd-analyze").arg("verify").arg(&copy).output().unwrap();
    let complaints = String::from_utf8_lossy(&output.stderr).into_owned();
    let ours: Vec<&str> = complaints.lines().filter(|line| line.contains("perdure.service")).collect();
    assert!(ours.is_empty(), "{ours:?}");
}
