//! The operator's Nexus endpoints: names under which callers reach the handlers of a task queue, or a URL outside.
//!
//! They stand in the record of the system's namespace, so that a change of any of them is one conditional write, and is known
//! to all nodes as soon as a change of a namespace is.

use perdure_cluster::{Namespaces, SYSTEM_NAMESPACE};
use perdure_proto::{
    Code, Error,
    perdure::state::v1::NexusEndpointRecord,
    temporal::api::{
        nexus::v1::{Endpoint, EndpointSpec, endpoint_target},
        operatorservice::v1::*,
        taskqueue::v1::TaskQueue,
    },
};
use perdure_types::{Limits, Timestamp};
use prost::Message;
use tonic::codegen::http::Uri;

use crate::{call::Call, rpc::namespace_write::change, validate};

/// As messages name it.
const NAME_PATTERN: &str = r"^[a-zA-Z][a-zA-Z0-9\\-]*[a-zA-Z0-9]$";

pub(crate) async fn create_nexus_endpoint(
    call: &Call<'_>,
    request: CreateNexusEndpointRequest,
) -> Result<CreateNexusEndpointResponse, Error> {
    call.frontend().namespaces().refresh().await?;
    let (spec, namespace_id) = checked_spec(call, request.spec)?;
    let id = crate::ids::new_id();
    let endpoint = Endpoint {
        version: 1,
        url_prefix: format!("/nexus/endpoints/{id}/services"),
        id,
        spec: Some(spec.clone()),
        created_time: now(call)?.to_proto(),
        last_modified_time: None,
    };
    let record = NexusEndpointRecord { endpoint: Some(endpoint.clone()), namespace_id };
    change(call, SYSTEM_NAMESPACE, |system| {
        if system.nexus_endpoints.iter().any(|other| name_of(other) == spec.name) {
            let name = &spec.name;
            let message = format!("error creating Nexus endpoint. Endpoint with name {name} already registered");
            return Err(Error::new(Code::AlreadyExists, message));
        }
        system.nexus_endpoints.push(record.clone());
        system.nexus_endpoints.sort_by(|a, b| id_of(a).cmp(id_of(b)));
        Ok(())
    })
    .await?;
    Ok(CreateNexusEndpointResponse { endpoint: Some(endpoint) })
}

pub(crate) async fn update_nexus_endpoint(
    call: &Call<'_>,
    request: UpdateNexusEndpointRequest,
) -> Result<UpdateNexusEndpointResponse, Error> {
    call.frontend().namespaces().refresh().await?;
    let (spec, namespace_id) = checked_spec(call, request.spec)?;
    let (id, now) = (request.id, now(call)?);
    let changed = change(call, SYSTEM_NAMESPACE, |system| {
        if system.nexus_endpoints.iter().any(|other| name_of(other) == spec.name && id_of(other) != id) {
            let name = &spec.name;
            let message = format!("error updating Nexus endpoint. Endpoint with name {name} already registered");
            return Err(Error::new(Code::AlreadyExists, message));
        }
        let record = system.nexus_endpoints.iter_mut().find(|record| id_of(record) == id);
        let missing = || Error::not_found(format!("error updating Nexus endpoint. endpoint ID {id} not found"));
        let record = record.ok_or_else(missing)?;
        namespace_id.clone_into(&mut record.namespace_id);
        let endpoint = record.endpoint.get_or_insert_default();
        check_version(request.version, endpoint.version)?;
        endpoint.version += 1;
        endpoint.spec = Some(spec.clone());
        endpoint.last_modified_time = now.to_proto();
        Ok(())
    })
    .await?;
    let endpoint = changed.nexus_endpoints.into_iter().find(|record| id_of(record) == id);
    Ok(UpdateNexusEndpointResponse { endpoint: endpoint.and_then(|record| record.endpoint) })
}

pub(crate) async fn delete_nexus_endpoint(
    call: &Call<'_>,
    request: DeleteNexusEndpointRequest,
) -> Result<DeleteNexusEndpointResponse, Error> {
    let mut issues = Issues::default();
    issues.of_id(&request.id);
    if request.version <= 0 {
        issues.push("endpoint version is non-positive");
    }
    issues.into_result()?;
    change(call, SYSTEM_NAMESPACE, |system| {
        let index = system.nexus_endpoints.iter().position(|record| id_of(record) == request.id);
        let missing = || Error::not_found(format!("error deleting nexus endpoint with ID: {}", request.id));
        let index = index.ok_or_else(missing)?;
        let version = system.nexus_endpoints[index].endpoint.as_ref().map_or(0, |endpoint| endpoint.version);
        check_version(request.version, version)?;
        system.nexus_endpoints.remove(index);
        Ok(())
    })
    .await?;
    Ok(DeleteNexusEndpointResponse {})
}

pub(crate) async fn get_nexus_endpoint(
    call: &Call<'_>,
    request: GetNexusEndpointRequest,
) -> Result<GetNexusEndpointResponse, Error> {
    let mut issues = Issues::default();
    issues.of_id(&request.id);
    issues.into_result()?;
    let registry = call.frontend().namespaces();
    // Another node may have changed it.
    registry.refresh().await?;
    let record = registry.nexus_endpoint_by_id(&request.id);
    let missing = || Error::not_found(format!("could not find Nexus endpoint with ID `{}`", request.id));
    Ok(GetNexusEndpointResponse { endpoint: Some(shown(registry, record.ok_or_else(missing)?)) })
}

pub(crate) async fn list_nexus_endpoints(
    call: &Call<'_>,
    request: ListNexusEndpointsRequest,
) -> Result<ListNexusEndpointsResponse, Error> {
    let registry = call.frontend().namespaces();
    registry.refresh().await?;
    if !request.name.is_empty() {
        let found = registry.nexus_endpoint_by_name(&request.name);
        let endpoints = found.map(|record| shown(registry, record)).into_iter().collect();
        return Ok(ListNexusEndpointsResponse { endpoints, ..Default::default() });
    }
    let limits = call.limits();
    let page = match i64::from(request.page_size) {
        ..0 => return Err(Error::invalid_argument("page_size is negative")),
        0 => limits.nexus_endpoints_default_page,
        size if size > limits.nexus_endpoints_page => {
            let message = format!("page_size exceeds limit of {}", limits.nexus_endpoints_page);
            return Err(Error::invalid_argument(message));
        }
        size => size,
    };
    let system = registry.by_name(SYSTEM_NAMESPACE);
    let records = system.as_ref().map_or(&[][..], |system| &system.record.nexus_endpoints);
    let (listed, next) = page_of(records, &request.next_page_token, usize::try_from(page).unwrap_or(1));
    let endpoints = listed.iter().map(|record| shown(registry, record.clone())).collect();
    Ok(ListNexusEndpointsResponse { endpoints, next_page_token: next.into() })
}

/// Of endpoints by id: those from the one that the token names on, and the token of the next page.
fn page_of<'a>(records: &'a [NexusEndpointRecord], token: &[u8], size: usize) -> (&'a [NexusEndpointRecord], Vec<u8>) {
    let rest = &records[records.partition_point(|record| id_of(record).as_bytes() < token)..];
    let (page, after) = rest.split_at(size.min(rest.len()));
    (page, after.first().map_or_else(Vec::new, |next| id_of(next).as_bytes().to_vec()))
}

/// The name of an endpoint whose handlers are in this namespace.
pub(super) fn with_target(registry: &Namespaces, namespace_id: &str) -> Option<String> {
    let system = registry.by_name(SYSTEM_NAMESPACE)?;
    let found = system.record.nexus_endpoints.iter().find(|record| record.namespace_id == namespace_id)?;
    Some(name_of(found).to_owned())
}

fn now(call: &Call<'_>) -> Result<Timestamp, Error> {
    Ok(call.frontend().rows()?.now())
}

fn id_of(record: &NexusEndpointRecord) -> &str {
    record.endpoint.as_ref().map_or("", |endpoint| &endpoint.id)
}

fn name_of(record: &NexusEndpointRecord) -> &str {
    record.endpoint.as_ref().and_then(|endpoint| endpoint.spec.as_ref()).map_or("", |spec| &spec.name)
}

fn check_version(received: i64, expected: i64) -> Result<(), Error> {
    if received == expected {
        return Ok(());
    }
    let message = format!("nexus endpoint version mismatch. received: {received} expected {expected}");
    Err(Error::failed_precondition(message))
}

/// With the name that the target namespace has now.
fn shown(registry: &Namespaces, record: NexusEndpointRecord) -> Endpoint {
    let mut endpoint = record.endpoint.unwrap_or_default();
    let target = endpoint.spec.as_mut().and_then(|spec| spec.target.as_mut());
    if let Some(endpoint_target::Variant::Worker(worker)) = target.and_then(|target| target.variant.as_mut())
        && let Some(namespace) = registry.by_id(&record.namespace_id)
    {
        namespace.name().clone_into(&mut worker.namespace);
    }
    endpoint
}

/// And the id of the namespace that a worker target is in.
fn checked_spec(call: &Call<'_>, spec: Option<EndpointSpec>) -> Result<(EndpointSpec, String), Error> {
    let spec = spec.unwrap_or_default();
    let registry = call.frontend().namespaces();
    let known = |name: &str| registry.by_name(name).map(|namespace| namespace.id().to_owned());
    let namespace_id = check_spec(&spec, call.limits(), known)?;
    Ok((spec, namespace_id))
}

fn check_spec(
    spec: &EndpointSpec,
    limits: &Limits,
    namespace_id: impl Fn(&str) -> Option<String>,
) -> Result<String, Error> {
    let mut issues = Issues::default();
    issues.of_name(&spec.name, limits);
    let Some(target) = spec.target.as_ref().and_then(|target| target.variant.as_ref()) else {
        issues.push("empty target variant");
        return issues.into_result().map(|()| String::new());
    };
    let mut found = String::new();
    match target {
        endpoint_target::Variant::Worker(worker) => {
            if worker.namespace.is_empty() {
                issues.push("target namespace not set");
            } else {
                found = namespace_id(&worker.namespace).ok_or_else(|| {
                    let reason = Error::namespace_not_found(&worker.namespace).message;
                    let message = format!("could not verify namespace referenced by target exists: {reason}");
                    Error::failed_precondition(message)
                })?;
            }
            let mut queue = TaskQueue { name: worker.task_queue.clone(), ..TaskQueue::default() };
            if let Err(error) = validate::task_queue(Some(&mut queue), limits) {
                issues.push(format!("invalid target task queue: {:?}", error.message));
            }
        }
        endpoint_target::Variant::External(external) => issues.of_url(&external.url, limits),
    }
    let longest = limits.nexus_endpoint_description_bytes;
    if spec.description.as_ref().is_some_and(|payload| exceeds(payload.encoded_len(), longest)) {
        issues.push(format!("description size exceeds limit of {longest}"));
    }
    issues.into_result().map(|()| found)
}

fn exceeds(length: usize, limit: i64) -> bool {
    i64::try_from(length).map_or(true, |length| length > limit)
}

/// All that is wrong with a request, told at once.
#[derive(Default)]
struct Issues(Vec<String>);

impl Issues {
    fn push(&mut self, issue: impl Into<String>) {
        self.0.push(issue.into());
    }

    fn of_id(&mut self, id: &str) {
        if id.is_empty() {
            self.push("endpoint ID not set");
        } else if !validate::is_uuid(id) {
            self.push(format!("malformed endpoint ID: \"invalid UUID: {id}\""));
        }
    }

    fn of_name(&mut self, name: &str, limits: &Limits) {
        if name.is_empty() {
            return self.push("endpoint name not set");
        }
        if exceeds(name.len(), limits.nexus_endpoint_name_length) {
            self.push(format!("endpoint name exceeds length limit of {}", limits.nexus_endpoint_name_length));
        }
        if !is_name(name) {
            self.push(format!("endpoint name must match the regex: \"{NAME_PATTERN}\""));
        }
    }

    fn of_url(&mut self, url: &str, limits: &Limits) {
        if url.is_empty() {
            return self.push("empty target URL");
        }
        if exceeds(url.len(), limits.nexus_endpoint_url_length) {
            return self.push(format!("target URL length exceeds limit of {}", limits.nexus_endpoint_url_length));
        }
        match url.parse::<Uri>() {
            Err(error) => self.push(format!("invalid target URL: {error}")),
            Ok(uri) => {
                let scheme = uri.scheme_str().unwrap_or_default();
                if !["http", "https"].contains(&scheme) {
                    self.push(format!("invalid target URL scheme: {scheme:?}, expected http or https"));
                }
            }
        }
    }

    fn into_result(self) -> Result<(), Error> {
        if self.0.is_empty() { Ok(()) } else { Err(Error::invalid_argument(self.0.join(", "))) }
    }
}

/// A letter, then letters, digits and dashes; no dash at the end; two characters at least.
fn is_name(name: &str) -> bool {
    let bytes = name.as_bytes();
    let [first, middle @ .., last] = bytes else { return false };
    first.is_ascii_alphabetic()
        && middle.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'-')
        && last.is_ascii_alphanumeric()
}

#[cfg(test)]
mod tests {
    use perdure_proto::temporal::api::{
        common::v1::Payload,
        nexus::v1::{EndpointTarget, endpoint_target},
    };

    use super::*;

    fn worker(name: &str, namespace: &str, task_queue: &str) -> EndpointSpec {
        let worker = endpoint_target::Worker { namespace: namespace.into(), task_queue: task_queue.into() };
        let target = EndpointTarget { variant: Some(endpoint_target::Variant::Worker(worker)) };
        EndpointSpec { name: name.into(), target: Some(target), ..Default::default() }
    }

    fn external(url: &str) -> EndpointSpec {
        let variant = endpoint_target::Variant::External(endpoint_target::External { url: url.into() });
        EndpointSpec {
            name: "out".into(),
            target: Some(EndpointTarget { variant: Some(variant) }),
            ..Default::default()
        }
    }

    #[track_caller]
    fn check(spec: &EndpointSpec, expect: Result<&str, (Code, &str)>) {
        let known = |name: &str| (name == "default").then(|| "id".to_owned());
        let got = check_spec(spec, &Limits::default(), known).map_err(|error| (error.grpc_code(), error.message));
        assert_eq!(got, expect.map(str::to_owned).map_err(|(code, text)| (code, text.to_owned())));
    }

    #[test]
    fn specs() {
        const REFUSED: Code = Code::InvalidArgument;
        const PATTERN: &str = r#"endpoint name must match the regex: "^[a-zA-Z][a-zA-Z0-9\\-]*[a-zA-Z0-9]$""#;
        check(&worker("orders-1", "default", "q"), Ok("id"));
        check(&worker("", "default", "q"), Err((REFUSED, "endpoint name not set")));
        for name in ["a", "1a", "a-", "a_b", "a b"] {
            check(&worker(name, "default", "q"), Err((REFUSED, PATTERN)));
        }
        let nowhere = "could not verify namespace referenced by target exists: Namespace x is not found.";
        check(&worker("orders", "x", "q"), Err((Code::FailedPrecondition, nowhere)));
        let both = "target namespace not set, invalid target task queue: \"missing task queue name\"";
        check(&worker("orders", "", ""), Err((REFUSED, both)));
        check(&EndpointSpec { name: "ab".into(), ..Default::default() }, Err((REFUSED, "empty target variant")));
        check(&external("https://example.com/nexus"), Ok(""));
        check(&external(""), Err((REFUSED, "empty target URL")));
        let scheme = "invalid target URL scheme: \"ftp\", expected http or https";
        check(&external("ftp://example.com"), Err((REFUSED, scheme)));
        let long = Payload { data: vec![0; 20_001].into(), ..Default::default() };
        let described = EndpointSpec { description: Some(long), ..worker("orders", "default", "q") };
        check(&described, Err((REFUSED, "description size exceeds limit of 20000")));
    }

    #[test]
    fn pages_go_on_where_they_ended_whatever_was_deleted_meanwhile() {
        let record = |id: &&str| {
            let endpoint = Endpoint { id: (*id).into(), ..Default::default() };
            NexusEndpointRecord { endpoint: Some(endpoint), ..Default::default() }
        };
        let records = |ids: &[&str]| -> Vec<_> { ids.iter().map(record).collect() };
        let ids = |page: &[NexusEndpointRecord]| -> Vec<String> { page.iter().map(|r| id_of(r).to_owned()).collect() };
        let all = records(&["a", "b", "c"]);
        let (page, token) = page_of(&all, b"", 2);
        assert_eq!((ids(page), token.as_slice()), (vec!["a".to_owned(), "b".to_owned()], b"c".as_slice()));
        let (page, token) = page_of(&all, &token, 2);
        assert_eq!((ids(page), token), (vec!["c".to_owned()], Vec::new()));
        let fewer = records(&["a", "d"]);
        assert_eq!(ids(page_of(&fewer, b"c", 2).0), ["d"]);
        assert!(page_of(&[], b"", 2).0.is_empty());
    }
}
