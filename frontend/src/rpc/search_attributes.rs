//! GetSearchAttributes, and the operator's ListSearchAttributes.

use perdure_proto::{
    Error,
    temporal::api::{
        operatorservice::v1::{ListSearchAttributesRequest, ListSearchAttributesResponse},
        workflowservice::v1::{GetSearchAttributesRequest, GetSearchAttributesResponse},
    },
};

use crate::{call::Call, search_attributes::system};

pub(crate) async fn get_search_attributes(
    _call: &Call<'_>,
    _request: GetSearchAttributesRequest,
) -> Result<GetSearchAttributesResponse, Error> {
    Ok(GetSearchAttributesResponse { keys: system().map(|(name, kind)| (name.to_owned(), kind as i32)).collect() })
}

/// The namespace may be left out: the system's attributes are the same everywhere.
pub(crate) async fn list_search_attributes(
    call: &Call<'_>,
    request: ListSearchAttributesRequest,
) -> Result<ListSearchAttributesResponse, Error> {
    if !request.namespace.is_empty() {
        call.namespace(&request.namespace)?;
    }
    Ok(ListSearchAttributesResponse {
        system_attributes: system().map(|(name, kind)| (name.to_owned(), kind as i32)).collect(),
        ..Default::default()
    })
}
