use std::io::Write;

use clap::{Args, FromArgMatches};
use perdure_persistence::cassandra::CassandraTls;
use tempfile::NamedTempFile;

use super::*;

fn flags(arguments: &[&str]) -> Flags {
    let command = Flags::augment_args(clap::Command::new("server").no_binary_name(true));
    let matches = command.try_get_matches_from(arguments).expect("valid flags");
    Flags::from_arg_matches(&matches).expect("gathered")
}

fn file(text: &str) -> NamedTempFile {
    let mut file = NamedTempFile::new().expect("temp");
    file.write_all(text.as_bytes()).expect("written");
    file
}

fn load(arguments: &[&str], env: &[(&str, &str)], text: &str) -> Result<Loaded, ConfigError> {
    let file = file(text);
    let path = file.path().to_str().expect("UTF-8");
    let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Loaded::from(&flags(&[arguments, &["--config", path]].concat()), &env)
}

fn error(arguments: &[&str], env: &[(&str, &str)], text: &str) -> String {
    load(arguments, env, text).expect_err("refused").to_string()
}

#[test]
fn the_defaults_are_those_of_the_structs() {
    let config = load(&[], &[], "").expect("loads").config;
    assert_eq!(config.cassandra, CassandraConfig::default());
    assert_eq!((config.ip.to_string().as_str(), config.port), ("127.0.0.1", 7233));
    assert_eq!(config.limits, Limits::default());
    assert_eq!(config.shard_config(), ShardConfig::default());
    assert!(config.namespace.is_empty());
}

#[test]
fn flags_before_environment_before_file_before_defaults() {
    let text = "port = 1\nmetrics_port = 1\nip = \"127.0.0.9\"";
    let env = [("PERDURE_PORT", "2"), ("PERDURE_METRICS_PORT", "2")];
    let config = load(&["--port", "3"], &env, text).expect("loads").config;
    assert_eq!((config.port, config.metrics_port, config.ip.to_string().as_str()), (3, 2, "127.0.0.9"));
    assert_eq!(config.cassandra.port, 9042);
}

#[test]
fn temporals_names_count_after_our_own() {
    let env = [
        ("CASSANDRA_SEEDS", "a, b:9043"),
        ("CASSANDRA_PORT", "9142"),
        ("CASSANDRA_USER", "u"),
        ("CASSANDRA_PASSWORD", "p"),
        ("CASSANDRA_TLS_ENABLED", "true"),
        ("CASSANDRA_CA", "/ca.pem"),
        ("CASSANDRA_HOST_VERIFICATION", "false"),
        ("CASSANDRA_CERT", ""),
        ("KEYSPACE", "temporal"),
        ("BIND_ON_IP", "0.0.0.0"),
    ];
    let config = load(&[], &env, "").expect("loads").config;
    assert_eq!(config.cassandra.seeds, ["a", "b:9043"]);
    assert_eq!((config.cassandra.port, config.cassandra.keyspace.as_str()), (9142, "temporal"));
    assert_eq!(config.cassandra.user.as_deref(), Some("u"));
    assert_eq!(config.cassandra.password.as_deref(), Some("p"));
    let tls = CassandraTls { ca: Some("/ca.pem".into()), verify_host: false, ..CassandraTls::default() };
    assert_eq!(config.cassandra.tls, Some(tls));
    assert_eq!(config.ip.to_string(), "0.0.0.0");

    let both = [("PERDURE_CASSANDRA_KEYSPACE", "ours"), ("KEYSPACE", "theirs")];
    assert_eq!(load(&[], &both, "").expect("loads").config.cassandra.keyspace, "ours");
}

#[test]
fn encryption_is_asked_for_or_follows_from_its_settings() {
    let tls = |arguments: &[&str], text: &str| load(arguments, &[], text).expect("loads").config.cassandra.tls;
    assert_eq!(tls(&[], ""), None);
    assert_eq!(tls(&["--cassandra-tls"], ""), Some(CassandraTls::default()));
    let ca = Some(CassandraTls { ca: Some("/x".into()), ..CassandraTls::default() });
    assert_eq!(tls(&[], "[cassandra.tls]\nca = \"/x\""), ca);
    assert_eq!(tls(&["--cassandra-tls=false"], "[cassandra.tls]\nca = \"/x\""), None);
}

#[test]
fn knobs_come_from_everywhere() {
    let text = "[dynamic_config]\nlimit.blobSize.error = 7\n\"limit.memoSize.error\" = 8";
    let env = [("PERDURE_DYNAMIC_CONFIG_VALUE", "limit.maxIDLength=9,limit.memoSize.error=10")];
    let limits = load(&["--dynamic-config-value", "limit.blobSize.error=11"], &env, text).expect("loads").config.limits;
    assert_eq!((limits.blob_size_error_bytes, limits.memo_size_error_bytes, limits.max_id_length), (11, 10, 9));
    assert!(error(&[], &[], "[dynamic_config]\n\"limit.blobSize.eror\" = 7").contains("limit.blobSize.error"));
}

#[test]
fn unknown_names_are_refused_with_the_nearest() {
    assert!(error(&[], &[], "prot = 1").ends_with("unknown setting prot; the nearest known one is port"));
    let message = error(&[], &[], "[cassandra]\nseed = [\"a\"]");
    assert!(message.ends_with("unknown setting cassandra.seed; the nearest known one is cassandra.seeds"), "{message}");
    assert!(error(&[], &[], "[casandra]\nseeds = [\"a\"]").contains("casandra"));
    let message = error(&[], &[("PERDURE_CASSANDRA_SEED", "a")], "");
    assert_eq!(message, "unknown setting PERDURE_CASSANDRA_SEED; the nearest known one is PERDURE_CASSANDRA_SEEDS");
    load(&[], &[("PERDURE_SOMETHING_ELSE", "a")], "").expect("not ours");
}

#[test]
fn values_are_checked_where_they_were_given() {
    assert_eq!(error(&["--port", "x"], &[], ""), "--port takes a port number, not \"x\"");
    assert_eq!(error(&[], &[("CASSANDRA_PORT", "99999")], ""), "CASSANDRA_PORT takes a port number, not \"99999\"");
    assert!(error(&[], &[], "port = \"1\"").ends_with("port takes a port number, not \"1\""));
    assert!(error(&[], &[], "port = ").contains("TOML parse error"));
    assert!(error(&["--log-level", "loud"], &[], "").contains("one of debug, info"));
    assert!(error(&["--keyspace", "a-b"], &[], "").contains("a-b"));
    assert!(error(&[], &[("CASSANDRA_CA_DATA", "x")], "").contains("CASSANDRA_CA"));
    let message = Loaded::from(&flags(&["--config", "/no/such/file"]), &BTreeMap::new()).expect_err("refused");
    assert!(message.to_string().starts_with("cannot read /no/such/file"));
}

#[test]
fn the_description_has_no_secret_and_loads_again() {
    let env = [("CASSANDRA_USER", "u"), ("CASSANDRA_PASSWORD", "hush")];
    let arguments = ["--dynamic-config-value", "limit.maxIDLength=9", "--namespace", "a", "--namespace", "b"];
    let loaded = load(&arguments, &env, "[cassandra]\nseeds = [\"x\"]").expect("loads");
    let text = loaded.describe();
    assert!(!text.contains("hush") && text.contains("********"), "{text}");
    assert!(text.contains("# CASSANDRA_USER") && text.contains("# file") && text.contains("# --namespace"), "{text}");
    let mut again = load(&[], &[], &text).expect("loads again").config;
    again.cassandra.password = Some("hush".into());
    assert_eq!(again, loaded.config);
}

#[test]
fn the_console_is_served_where_it_is_told_and_else_nowhere() {
    let address = |arguments: &[&str], text: &str| load(arguments, &[], text).expect("loads").config.console.address();
    assert_eq!(address(&[], ""), None);
    assert_eq!(address(&["--console-ip", "0.0.0.0"], ""), None);
    assert_eq!(address(&["--console-port", "8233"], "").map(|at| at.to_string()).as_deref(), Some("127.0.0.1:8233"));
    let text = "[console]\nport = 80\nip = \"::\"";
    assert_eq!(address(&[], text).map(|at| at.to_string()).as_deref(), Some("[::]:80"));
}

#[test]
fn nodes_have_tls_when_all_of_it_is_set() {
    let tls = |text: &str| load(&[], &[], text).map(|loaded| loaded.config.cluster.tls);
    assert_eq!(tls("").expect("loads"), None);
    let all = "[cluster.tls]\nca = \"/ca\"\ncert = \"/cert\"\nkey = \"/key\"";
    let found = tls(all).expect("loads").expect("is on");
    assert_eq!((found.ca.to_str(), found.name.as_str()), (Some("/ca"), "perdure"));
    assert_eq!(tls(&format!("{all}\nname = \"node\"")).expect("loads").expect("is on").name, "node");
    assert!(tls("[cluster.tls]\nca = \"/ca\"").is_err(), "who trusts an authority has to show a certificate");
}
