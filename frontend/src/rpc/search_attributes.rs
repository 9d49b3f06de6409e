//! GetSearchAttributes, and the operator's AddSearchAttributes, RemoveSearchAttributes and ListSearchAttributes.

use std::collections::HashMap;

use perdure_proto::{
    Error,
    temporal::api::{
        operatorservice::v1::{
            AddSearchAttributesRequest, AddSearchAttributesResponse, ListSearchAttributesRequest,
            ListSearchAttributesResponse, RemoveSearchAttributesRequest, RemoveSearchAttributesResponse,
        },
        workflowservice::v1::{GetSearchAttributesRequest, GetSearchAttributesResponse},
    },
};
use perdure_visibility::{Kind, SYSTEM, field_of, free_field, is_reserved, kind_name, may_be_set};

use crate::{call::Call, rpc::namespace_write::change, search_attributes::attributes};

fn system() -> HashMap<String, i32> {
    SYSTEM.iter().map(|(name, kind)| ((*name).to_owned(), *kind as i32)).collect()
}

/// The call names no namespace, so it can tell of none.
pub(crate) async fn get_search_attributes(
    _call: &Call<'_>,
    _request: GetSearchAttributesRequest,
) -> Result<GetSearchAttributesResponse, Error> {
    Ok(GetSearchAttributesResponse { keys: system() })
}

pub(crate) async fn list_search_attributes(
    call: &Call<'_>,
    request: ListSearchAttributesRequest,
) -> Result<ListSearchAttributesResponse, Error> {
    // Another node may have changed them.
    call.frontend().namespaces().refresh().await?;
    let namespace = call.namespace(&request.namespace)?;
    let custom = attributes(&namespace);
    Ok(ListSearchAttributesResponse {
        custom_attributes: custom.custom().iter().map(|(name, kind)| (name.clone(), *kind as i32)).collect(),
        system_attributes: system(),
        ..Default::default()
    })
}

pub(crate) async fn add_search_attributes(
    call: &Call<'_>,
    request: AddSearchAttributesRequest,
) -> Result<AddSearchAttributesResponse, Error> {
    if request.search_attributes.is_empty() {
        return Err(not_set());
    }
    let mut wanted: Vec<(&String, Kind)> = Vec::new();
    for (name, kind) in &request.search_attributes {
        if is_reserved(name) {
            return Err(Error::invalid_argument(format!("Search attribute {name} is reserved by system.")));
        }
        let unknown = |_| Error::invalid_argument(format!("Unknown search attribute type: {kind}."));
        wanted.push((name, Kind::try_from(*kind).map_err(unknown)?));
    }
    wanted.sort();
    change(call, &request.namespace, |record| {
        let aliases = &mut record.custom_search_attribute_aliases;
        wanted.iter().try_for_each(|(name, kind)| add(aliases, name, *kind))
    })
    .await?;
    Ok(AddSearchAttributesResponse::default())
}

/// Adds an attribute. One of that name that is there already stays as it is, as with Temporal.
fn add(aliases: &mut HashMap<String, String>, name: &str, kind: Kind) -> Result<(), Error> {
    if field_of(aliases, name).is_some() {
        tracing::warn!(search_attribute = name, "a search attribute that exists already is to be added");
        return Ok(());
    }
    let Some(field) = free_field(aliases, kind) else {
        let of_kind = |field: &&String| field.trim_end_matches(|c: char| c.is_ascii_digit()) == kind_name(kind);
        let most = aliases.keys().filter(of_kind).count();
        return Err(Error::invalid_argument(format!(
            "Unable to create search attributes: cannot have more than {most} search attribute of type {}.",
            kind_name(kind)
        )));
    };
    aliases.insert(field, name.to_owned());
    Ok(())
}

pub(crate) async fn remove_search_attributes(
    call: &Call<'_>,
    request: RemoveSearchAttributesRequest,
) -> Result<RemoveSearchAttributesResponse, Error> {
    if request.search_attributes.is_empty() {
        return Err(not_set());
    }
    change(call, &request.namespace, |record| {
        let aliases = &mut record.custom_search_attribute_aliases;
        for name in &request.search_attributes {
            if may_be_set(name).is_some() {
                let refusal = format!("Unable to remove non-custom search attributes: {name}.");
                return Err(Error::invalid_argument(refusal));
            }
            if let Some(field) = field_of(aliases, name) {
                aliases.remove(&field);
            }
        }
        Ok(())
    })
    .await?;
    Ok(RemoveSearchAttributesResponse::default())
}

fn not_set() -> Error {
    Error::invalid_argument("SearchAttributes are not set on request.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_get_fields_of_their_kind() {
        let mut aliases = HashMap::new();
        add(&mut aliases, "Customer", Kind::Keyword).expect("added");
        add(&mut aliases, "Region", Kind::Keyword).expect("added");
        add(&mut aliases, "Customer", Kind::Int).expect("is there already");
        let expected = [("Keyword01", "Customer"), ("Keyword02", "Region")];
        assert_eq!(aliases, expected.map(|(field, alias)| (field.to_owned(), alias.to_owned())).into());
        let error = add(&mut aliases, "Odd", Kind::Unspecified).expect_err("no kind");
        let expected =
            "Unable to create search attributes: cannot have more than 0 search attribute of type Unspecified.";
        assert_eq!(error.message, expected);
    }
}
