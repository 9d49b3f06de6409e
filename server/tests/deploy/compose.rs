//! The compose file.

use std::collections::BTreeMap;

use serde_yaml_ng::Value;

use crate::{image, path, settings, texts, yaml};

const FILE: &str = "deploy/compose.yaml";
const NODES: usize = 3;

fn services() -> BTreeMap<String, Value> {
    let file = yaml(FILE);
    let services = file["services"].as_mapping().unwrap();
    services.iter().map(|(name, service)| (name.as_str().unwrap().to_owned(), service.clone())).collect()
}

fn is_ours(service: &Value) -> bool {
    service["image"].as_str().unwrap().contains("perdure:")
}

fn environment(service: &Value) -> BTreeMap<String, String> {
    let Some(variables) = service["environment"].as_mapping() else { return BTreeMap::new() };
    let text = |value: &Value| value.as_str().unwrap_or_else(|| panic!("quote {value:?}")).to_owned();
    variables.iter().map(|(name, value)| (text(name), text(value))).collect()
}

#[test]
fn the_servers_accept_their_settings_and_differ_in_name() {
    let mut names = Vec::new();
    for service in services().values().filter(|service| is_ours(service)) {
        let mut variables = image::environment();
        variables.extend(environment(service));
        names.extend(variables.get("PERDURE_CLUSTER_NAME").cloned());
        let shown = settings::accepted(&[], &variables);
        assert!(shown.contains("seeds = [\"cassandra\"]"), "{shown}");
        settings::parses(&texts(&service["healthcheck"]["test"])[2..]);
    }
    names.dedup();
    assert_eq!(names.len(), NODES, "{names:?}");
}

#[test]
fn what_is_named_is_there() {
    let (file, services) = (yaml(FILE), services());
    for (name, service) in &services {
        let dependencies = service["depends_on"].as_mapping().into_iter().flatten();
        for (dependency, condition) in dependencies {
            let dependency = services.get(dependency.as_str().unwrap()).expect("a service of this file");
            assert_eq!(condition["condition"].as_str(), Some("service_healthy"), "{name}");
            assert!(dependency["healthcheck"]["test"].is_sequence(), "{name}");
        }
        for volume in service["volumes"].as_sequence().into_iter().flatten() {
            let source = volume.as_str().unwrap().split(':').next().unwrap();
            let there = if source.starts_with('.') {
                path("deploy").join(source).exists()
            } else {
                file["volumes"].get(source).is_some()
            };
            assert!(there, "{name}: {source}");
        }
        let image = service["image"].as_str().unwrap();
        assert!(image.contains(':') && !image.ends_with(":latest"), "{name}: {image} is not pinned");
    }
    let build = &services["perdure-1"]["build"];
    let context = path("deploy").join(build["context"].as_str().unwrap());
    assert!(context.join(build["dockerfile"].as_str().unwrap()).exists());
}

#[test]
fn no_port_of_the_machine_is_taken_twice_or_open_to_others() {
    let mut taken = Vec::new();
    for (name, service) in services() {
        for port in service["ports"].as_sequence().into_iter().flatten() {
            let port = port.as_str().unwrap();
            let (address, rest) = port.split_once(':').unwrap();
            assert_eq!(address, "127.0.0.1", "{name}: {port}");
            taken.push(rest.split(':').next().unwrap().to_owned());
        }
    }
    let all = taken.len();
    taken.sort();
    taken.dedup();
    assert_eq!(taken.len(), all);
}
