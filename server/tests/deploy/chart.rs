//! The Helm chart: its parts fit one another, and where `helm` is installed, what it renders is what the server takes.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    process::Command,
};

use serde::Deserialize;
use serde_json::Value as Json;
use serde_yaml_ng::Value;

use crate::{image, path, settings, text, texts, yaml};

const CHART: &str = "deploy/helm/perdure";
/// As old as the chart allows.
const KUBERNETES: &str = "1.27.0";
/// What the other values are for.
const OTHER_VALUES: &str = r#"
cassandra:
  seeds: [a, "b:9043"]
  user: u
  existingSecret: passwords
  localDatacenter: dc1
  tls: { enabled: true, existingSecret: certificates, clientCertificate: true }
dynamicConfig:
  limit.blobSize.error: 4194304
  history.defaultActivityRetryPolicy.BackoffCoefficient: 2.5
  system.enableEagerWorkflowStart: false
serviceMonitor: { enabled: true }
extraEnv: [{ name: PERDURE_SHARDS_FLUSH_INTERVAL_MS, value: "2000" }]
"#;

fn templates() -> String {
    let mut files: Vec<_> =
        fs::read_dir(path(CHART).join("templates")).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    files.iter().map(|file| fs::read_to_string(file).unwrap()).collect()
}

/// `cassandra.tls.enabled` of `.Values.cassandra.tls.enabled`.
fn used_values(templates: &str) -> BTreeSet<String> {
    let name = |rest: &str| rest.split(|c: char| !c.is_alphanumeric() && c != '.').next().unwrap().to_owned();
    templates.split(".Values.").skip(1).map(name).collect()
}

fn lookup<'a>(values: &'a Value, key: &str) -> Option<&'a Value> {
    key.split('.').try_fold(values, |value, part| value.get(part))
}

#[test]
fn templates_use_values_that_there_are() {
    let (values, templates) = (yaml(&format!("{CHART}/values.yaml")), templates());
    let used = used_values(&templates);
    for key in &used {
        assert!(lookup(&values, key).is_some(), "there is no value {key}");
    }
    for (key, _) in values.as_mapping().unwrap() {
        let key = key.as_str().unwrap();
        assert!(used.iter().any(|used| used.split('.').next() == Some(key)), "no template uses {key}");
    }
    assert_eq!(templates.matches("{{").count(), templates.matches("}}").count());
    assert!(!templates.contains("helm.sh/hook"), "the chart promises to need no hooks");
}

#[test]
fn the_schema_knows_the_values() {
    let schema: Json = serde_json::from_str(&text(&format!("{CHART}/values.schema.json"))).unwrap();
    let values = yaml(&format!("{CHART}/values.yaml"));
    fits(&schema, &values, "");
}

/// The part of JSON Schema that the chart uses: closed objects and types.
fn fits(schema: &Json, value: &Value, at: &str) {
    if let Some(choices) = schema["enum"].as_array() {
        assert!(choices.iter().any(|choice| choice.as_str() == value.as_str()), "{at}: {value:?}");
    }
    let of_type = |name: &str| match name {
        "object" => value.is_mapping(),
        "array" => value.is_sequence(),
        "string" => value.is_string(),
        "boolean" => value.is_bool(),
        "integer" | "number" => value.is_number(),
        other => panic!("{at}: type {other}"),
    };
    match &schema["type"] {
        Json::String(name) => assert!(of_type(name), "{at}: {value:?} is no {name}"),
        Json::Array(names) => assert!(names.iter().any(|name| of_type(name.as_str().unwrap())), "{at}: {value:?}"),
        _ => {}
    }
    let Some(properties) = schema["properties"].as_object() else { return };
    assert_eq!(schema["additionalProperties"], Json::Bool(false), "{at}: misspelt values would go unnoticed");
    for (key, inner) in value.as_mapping().unwrap() {
        let key = key.as_str().unwrap();
        let schema = properties.get(key).unwrap_or_else(|| panic!("{at}.{key} is not in the schema"));
        fits(schema, inner, &format!("{at}.{key}"));
    }
    for key in properties.keys().filter(|key| *key != "global") {
        assert!(value.get(key).is_some(), "{at}.{key} of the schema has no default");
    }
}

/// Without `helm`: the names in the configuration file that the chart writes.
#[test]
fn the_configuration_names_settings_that_there_are() {
    let template = text(&format!("{CHART}/templates/configmap.yaml"));
    let (_, file) = template.split_once("perdure.toml: |").unwrap();
    let known = settings::known();
    let mut section = String::new();
    for line in file.lines().map(str::trim).filter(|line| !line.starts_with("{{")) {
        if let Some(name) = line.strip_prefix('[') {
            section = format!("{}.", name.trim_end_matches(']'));
        } else if let Some((name, _)) = line.split_once(" = ") {
            let key = format!("{}{name}", section.trim_start_matches("dynamic_config."));
            assert!(known.contains_key(&key), "there is no setting {key}");
        }
    }
}

#[test]
fn what_it_renders_is_accepted() {
    if Command::new("helm").arg("version").output().is_err() {
        println!("helm is not installed: the chart was not rendered");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let others = directory.path().join("values.yaml");
    fs::write(&others, OTHER_VALUES).unwrap();
    let others = others.display().to_string();
    helm(&["lint", "--strict"]);
    for more in [&[][..], &["--values", &others]] {
        let rendered = helm(&[&["template", "release", "--kube-version", KUBERNETES], more].concat());
        let documents: Vec<Value> = serde_yaml_ng::Deserializer::from_str(&rendered)
            .map(|document| Value::deserialize(document).unwrap())
            .filter(|document| !document.is_null())
            .collect();
        let kind = |kind: &str| documents.iter().find(|d| d["kind"].as_str() == Some(kind)).expect("rendered");
        let file = directory.path().join("perdure.toml");
        fs::write(&file, kind("ConfigMap")["data"]["perdure.toml"].as_str().unwrap()).unwrap();
        check_pod(&kind("StatefulSet")["spec"]["template"]["spec"], &file.display().to_string());
        assert_eq!(kind("PodDisruptionBudget")["spec"]["maxUnavailable"].as_u64(), Some(1));
    }
}

fn check_pod(pod: &Value, file: &str) {
    let container = &pod["containers"][0];
    let mut environment = image::environment();
    for variable in container["env"].as_sequence().unwrap() {
        // What comes from elsewhere is known to the cluster only.
        let name = variable["name"].as_str().unwrap().to_owned();
        let value = variable["value"].as_str().unwrap_or("127.0.0.1").to_owned();
        environment.insert(name, value);
    }
    let arguments = texts(&container["args"]);
    assert_eq!(arguments[..2], ["server", "--config"]);
    settings::accepted(&["--config".to_owned(), file.to_owned()], &environment);

    let ports: BTreeMap<&str, u64> = container["ports"]
        .as_sequence()
        .unwrap()
        .iter()
        .map(|port| (port["name"].as_str().unwrap(), port["containerPort"].as_u64().unwrap()))
        .collect();
    for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
        assert_eq!(container[probe]["grpc"]["port"].as_u64(), Some(ports["grpc"]), "{probe}");
    }
    assert_eq!(pod["securityContext"]["runAsNonRoot"].as_bool(), Some(true));
    assert!(container["lifecycle"].is_null());
}

fn helm(arguments: &[&str]) -> String {
    let output = Command::new("helm").args(arguments).arg(path(CHART)).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
