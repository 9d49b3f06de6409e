//! Which RPC a method and a path mean, from the `google.api.http` annotations.

use std::collections::BTreeMap;

use axum::http::Method;
use prost_reflect::{DescriptorPool, DynamicMessage, MethodDescriptor, ReflectMessage, Value};
use tonic::Status;

use super::BrokenDescriptors;

/// The services whose RPCs have paths.
const SERVICES: [&str; 2] =
    ["temporal.api.workflowservice.v1.WorkflowService", "temporal.api.operatorservice.v1.OperatorService"];

/// A path template: the RPC, and the request field that each variable segment fills, in order.
struct Route {
    method: MethodDescriptor,
    fields: Vec<String>,
}

/// All paths, by HTTP method.
pub(super) struct Routes {
    by_method: BTreeMap<&'static str, matchit::Router<Route>>,
}

/// What the variable segments of a path say: field path (`execution.workflow_id`) and value.
pub(super) type Parameters = Vec<(String, String)>;

impl Routes {
    pub(super) fn new(pool: &DescriptorPool) -> Result<Self, BrokenDescriptors> {
        let missing = |what: &str| BrokenDescriptors(format!("{what} is missing"));
        let http = pool.get_extension_by_name("google.api.http").ok_or_else(|| missing("google.api.http"))?;
        let mut routes = Self { by_method: BTreeMap::new() };
        for name in SERVICES {
            let service = pool.get_service_by_name(name).ok_or_else(|| missing(name))?;
            for method in service.methods() {
                let options = method.options();
                if let Value::Message(rule) = &*options.get_extension(&http) {
                    routes.add_rule(&method, rule)?;
                }
            }
        }
        Ok(routes)
    }

    fn add_rule(&mut self, method: &MethodDescriptor, rule: &DynamicMessage) -> Result<(), BrokenDescriptors> {
        for verb in ["GET", "POST", "PUT", "PATCH", "DELETE"] {
            let Some(field) = rule.descriptor().get_field_by_name(&verb.to_lowercase()) else { continue };
            if rule.has_field(&field)
                && let Value::String(template) = &*rule.get_field(&field)
            {
                self.add(verb, template, method)?;
            }
        }
        let Some(more) = rule.get_field_by_name("additional_bindings") else { return Ok(()) };
        for rule in more.as_list().unwrap_or_default() {
            if let Value::Message(rule) = rule {
                self.add_rule(method, rule)?;
            }
        }
        Ok(())
    }

    fn add(&mut self, verb: &'static str, template: &str, method: &MethodDescriptor) -> Result<(), BrokenDescriptors> {
        let mut fields = Vec::new();
        // Variables are named by their place: templates of one shape may fill different fields.
        let segments = template.split('/').map(|segment| {
            match segment.strip_prefix('{').and_then(|segment| segment.strip_suffix('}')) {
                None => segment.to_owned(),
                Some(field) => {
                    fields.push(field.to_owned());
                    format!("{{{}}}", fields.len() - 1)
                }
            }
        });
        let path = segments.collect::<Vec<_>>().join("/");
        let route = Route { method: method.clone(), fields };
        self.by_method
            .entry(verb)
            .or_default()
            .insert(path, route)
            .map_err(|error| BrokenDescriptors(format!("{verb} {template}: {error}")))
    }

    /// NOT_FOUND: no such path. UNIMPLEMENTED: the path is there, but not for this HTTP method.
    pub(super) fn find(&self, verb: &Method, path: &str) -> Result<(MethodDescriptor, Parameters), Status> {
        let Some(found) = self.by_method.get(verb.as_str()).and_then(|router| router.at(path).ok()) else {
            let elsewhere = self.by_method.values().any(|router| router.at(path).is_ok());
            return Err(if elsewhere {
                Status::unimplemented("Method Not Allowed")
            } else {
                Status::not_found("Not Found")
            });
        };
        let mut parameters = Parameters::new();
        for (field, (_, value)) in found.value.fields.iter().zip(found.params.iter()) {
            let value = percent_encoding::percent_decode_str(value)
                .decode_utf8()
                .map_err(|_| Status::invalid_argument(format!("{field} is not valid UTF-8")))?;
            parameters.push((field.clone(), value.into_owned()));
        }
        Ok((found.value.method.clone(), parameters))
    }
}

#[cfg(test)]
mod tests {
    use perdure_proto::TEMPORAL_DESCRIPTORS;

    use super::*;

    fn routes() -> Routes {
        Routes::new(&DescriptorPool::decode(TEMPORAL_DESCRIPTORS).unwrap()).unwrap()
    }

    #[track_caller]
    fn check(verb: Method, path: &str, method: &str, parameters: &[(&str, &str)]) {
        let (found, values) = routes().find(&verb, path).unwrap();
        assert_eq!(found.name(), method);
        let values: Vec<_> = values.iter().map(|(field, value)| (field.as_str(), value.as_str())).collect();
        assert_eq!(values, parameters);
    }

    #[test]
    fn paths_lead_to_rpcs_and_name_their_fields() {
        check(
            Method::POST,
            "/namespaces/default/workflows/order%2F1",
            "StartWorkflowExecution",
            &[("namespace", "default"), ("workflow_id", "order/1")],
        );
        check(
            Method::GET,
            "/api/v1/namespaces/default/workflows/a",
            "DescribeWorkflowExecution",
            &[("namespace", "default"), ("execution.workflow_id", "a")],
        );
        check(Method::GET, "/cluster/namespaces", "ListNamespaces", &[]);
    }

    #[test]
    fn unknown_paths_and_methods() {
        assert_eq!(routes().find(&Method::GET, "/nothing").unwrap_err().code(), tonic::Code::NotFound);
        assert_eq!(routes().find(&Method::PUT, "/cluster/namespaces").unwrap_err().code(), tonic::Code::Unimplemented);
    }
}
