//! The settings that the binary knows, and whether it accepts a set of them.

use std::{collections::BTreeMap, process::Command};

use crate::common::BINARY;

/// Variables of commands that are no settings of the server.
const OTHERS: [&str; 4] =
    ["PERDURE_CONFIG", "PERDURE_DYNAMIC_CONFIG_VALUE", "PERDURE_ADMIN_ADDRESS", "PERDURE_HEALTH_ADDRESS"];

/// All keys of a configuration file, with their names in the environment.
pub fn known() -> BTreeMap<String, String> {
    let output = Command::new(BINARY).args(["config", "list"]).output().unwrap();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    let known: BTreeMap<_, _> = text
        .lines()
        .map(|line| {
            let cells: Vec<&str> = line.split('\t').collect();
            (cells[0].to_owned(), cells[1].to_owned())
        })
        .collect();
    assert!(known.contains_key("cassandra.seeds"), "{text}");
    known
}

/// The server would start with these arguments (of `perdure server`) and this environment; gives what would be in force.
pub fn accepted(arguments: &[String], environment: &BTreeMap<String, String>) -> String {
    let known = known();
    for name in environment.keys().filter(|name| name.starts_with("PERDURE_")) {
        let exists = known.values().any(|known| known == name) || OTHERS.contains(&name.as_str());
        assert!(exists, "there is no setting {name}");
    }
    let output =
        Command::new(BINARY).args(["config", "check"]).args(arguments).env_clear().envs(environment).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The program takes these arguments, whatever comes of them.
pub fn parses(arguments: &[String]) {
    let output = Command::new(BINARY).args(arguments).arg("--help").env_clear().output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}
