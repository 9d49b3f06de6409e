//! The search attributes of a namespace, as this node knows them.

use perdure_cluster::Namespace;
use perdure_proto::{Error, temporal::api::common::v1::SearchAttributes};
use perdure_types::EntityKind;
use perdure_visibility::{Attributes, Query, QueryError, Refusal};

use crate::call::Call;

/// Those of a namespace.
pub(crate) fn attributes(namespace: &Namespace) -> Attributes {
    Attributes::from_aliases(&namespace.record.custom_search_attribute_aliases)
}

/// Those of a namespace as it is in the store, unless they are what this node knows already: another node may have
/// changed them a moment ago.
async fn newer(call: &Call<'_>, known: &Namespace) -> Option<Attributes> {
    let registry = call.frontend().namespaces();
    registry.refresh().await.ok()?;
    let fresh = registry.by_name(known.name())?;
    let before = &known.record.custom_search_attribute_aliases;
    (fresh.record.custom_search_attribute_aliases != *before).then(|| attributes(&fresh))
}

/// Checks what a start sets.
pub(crate) async fn check(
    call: &Call<'_>,
    namespace: &Namespace,
    given: Option<&SearchAttributes>,
) -> Result<(), Error> {
    let Some(given) = given.filter(|given| !given.indexed_fields.is_empty()) else { return Ok(()) };
    let check = |attributes: &Attributes| perdure_visibility::check(given, attributes, namespace.name());
    let mut checked = check(&attributes(namespace));
    if let Err(Refusal::Unknown(_)) = &checked
        && let Some(newer) = newer(call, namespace).await
    {
        checked = check(&newer);
    }
    checked.map_err(|refusal| Error::invalid_argument(refusal.into_message()))
}

/// Reads a query for workflows; gives the attributes too, for what is listed.
pub(crate) async fn parse_query(
    call: &Call<'_>,
    namespace: &Namespace,
    text: &str,
    accept: impl Fn(&Query) -> Result<(), QueryError>,
) -> Result<(Query, Attributes), Error> {
    parse_query_of(EntityKind::Workflow, call, namespace, text, accept).await
}

/// The same for the list of another kind.
pub(crate) async fn parse_query_of(
    kind: EntityKind,
    call: &Call<'_>,
    namespace: &Namespace,
    text: &str,
    accept: impl Fn(&Query) -> Result<(), QueryError>,
) -> Result<(Query, Attributes), Error> {
    let parse = |attributes: &Attributes| {
        let query = Query::parse(text, attributes)?;
        accept(&query)?;
        Ok(query)
    };
    let of_kind = |attributes: Attributes| match kind {
        EntityKind::Activity => attributes.of_activities(),
        EntityKind::NexusOperation => attributes.of_nexus_operations(),
        _ => attributes,
    };
    let known = of_kind(attributes(namespace));
    let error: QueryError = match parse(&known) {
        Ok(query) => return Ok((query, known)),
        Err(error) => error,
    };
    if let Some(newer) = newer(call, namespace).await.map(of_kind)
        && let Ok(query) = parse(&newer)
    {
        return Ok((query, newer));
    }
    Err(Error::invalid_argument(error.to_string()))
}
