//! `perdure admin`: asks any node of a cluster about all of it.

use std::{fmt::Write, net::SocketAddr, time::Duration};

use clap::{Args, Subcommand};
use perdure_proto::perdure::node::v1::{
    DrainRequest, MembersRequest, MembersResponse, ShardInfo, ShardRequest, ShardResponse, ShardsRequest,
    admin_client::AdminClient,
};
use serde_json::{Value, json};
use tonic::transport::{Channel, Endpoint};

use crate::exit::Failure;

const TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, Args)]
pub struct AdminArgs {
    /// Cluster port of any node
    #[arg(long, global = true, default_value = "127.0.0.1:7234", env = "PERDURE_ADMIN_ADDRESS")]
    address: SocketAddr,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: AdminCommand,
}

#[derive(Debug, Subcommand)]
enum AdminCommand {
    /// List the members of the cluster
    Members,
    /// List the shards: who serves them, and who should
    Shards,
    /// Show one shard
    Shard { shard: u32 },
    /// Make a node hand over all its shards and end
    Drain {
        /// Its id or its address, or the beginning of one
        node: String,
    },
}

pub async fn run(args: AdminArgs) -> Result<(), Failure> {
    let failed = |reason: String| Failure::new(Failure::OTHER, format!("{}: {reason}", args.address));
    let endpoint =
        Endpoint::from_shared(format!("http://{}", args.address)).map_err(|error| failed(error.to_string()))?;
    let channel = endpoint.connect_timeout(TIMEOUT).timeout(TIMEOUT).connect().await;
    let channel =
        channel.map_err(|_| failed("no node answers there; name a node's cluster port with --address".to_owned()))?;
    let text = ask(channel, args.command, args.json).await.map_err(|status| failed(status.message().to_owned()))?;
    print!("{text}");
    Ok(())
}

async fn ask(channel: Channel, command: AdminCommand, as_json: bool) -> Result<String, tonic::Status> {
    let mut client = AdminClient::new(channel);
    let (json, table) = match command {
        AdminCommand::Members => {
            let members = client.members(MembersRequest {}).await?.into_inner();
            (members_json(&members), members_table(&members))
        }
        AdminCommand::Shards => {
            let shards = client.shards(ShardsRequest {}).await?.into_inner().shards;
            (shards.iter().map(shard_json).collect(), shards_table(&shards))
        }
        AdminCommand::Shard { shard } => {
            let found = client.shard(ShardRequest { shard }).await?.into_inner();
            (status_json(&found), status_text(&found))
        }
        AdminCommand::Drain { node } => {
            let node = client.drain(DrainRequest { node, forwarded: false }).await?.into_inner().node;
            (json!({ "node": node }), format!("{node} drains and ends\n"))
        }
    };
    Ok(if as_json { format!("{json:#}\n") } else { table })
}

fn members_json(response: &MembersResponse) -> Value {
    let members = response.members.iter().map(|member| {
        json!({
            "node": member.node, "address": member.address, "state": member.state, "session": member.session,
            "shardsServed": member.shards_served, "shardsWanted": member.shards_wanted,
            "startedTimeNs": member.started_time_ns, "clockOffsetNs": member.clock_offset_ns,
            "version": member.version, "frontendAddress": member.frontend_address,
        })
    });
    json!({
        "clusterId": response.cluster_id, "slots": response.slots, "answeredBy": response.node,
        "members": members.collect::<Value>(),
    })
}

fn members_table(response: &MembersResponse) -> String {
    let heads = ["NODE", "STATE", "SHARDS", "OF", "FRONTEND", "VERSION", "CLOCK"].map(str::to_owned);
    let mut rows = vec![heads.to_vec()];
    for member in &response.members {
        let clock = if member.node == response.node {
            "(asked)".to_owned()
        } else {
            format!("{:+.1}ms", member.clock_offset_ns as f64 / 1e6)
        };
        rows.push(vec![
            member.node.clone(),
            member.state.clone(),
            member.shards_served.to_string(),
            member.shards_wanted.to_string(),
            member.frontend_address.clone(),
            member.version.clone(),
            clock,
        ]);
    }
    format!("cluster {}, {} shards\n{}", response.cluster_id, response.slots, table(&rows))
}

fn shard_json(info: &ShardInfo) -> Value {
    json!({ "shard": info.shard, "servedBy": info.served_by, "epoch": info.epoch, "wantedBy": info.wanted_by })
}

fn shards_table(shards: &[ShardInfo]) -> String {
    let mut rows = vec![["SHARD", "EPOCH", "SERVED BY", "MOVES TO"].map(str::to_owned).to_vec()];
    for info in shards {
        let moves = if info.served_by == info.wanted_by { String::new() } else { info.wanted_by.clone() };
        rows.push(vec![info.shard.to_string(), info.epoch.to_string(), or_nobody(&info.served_by), moves]);
    }
    table(&rows)
}

fn status_json(response: &ShardResponse) -> Value {
    let mut json = response.info.as_ref().map_or(Value::Null, shard_json);
    if let (Some(status), Some(fields)) = (&response.status, json.as_object_mut()) {
        fields.insert("ownership".to_owned(), json!(status.ownership));
        fields.insert("session".to_owned(), json!(status.session));
        let checkpoint = json!({ "epoch": status.checkpoint_epoch, "seq": status.checkpoint_seq });
        fields.insert("checkpoint".to_owned(), checkpoint);
        fields.insert("loaded".to_owned(), json!(status.loaded));
        fields.insert("dirty".to_owned(), json!(status.dirty));
    }
    json
}

fn status_text(response: &ShardResponse) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{name:<12} {value}");
    };
    if let Some(info) = &response.info {
        line("shard", info.shard.to_string());
        line("served by", or_nobody(&info.served_by));
        line("wanted by", or_nobody(&info.wanted_by));
        line("epoch", info.epoch.to_string());
    }
    if let Some(status) = &response.status {
        line("ownership", status.ownership.clone());
        line("session", status.session.clone());
        line("checkpoint", format!("epoch {} row {}", status.checkpoint_epoch, status.checkpoint_seq));
        line("loaded", format!("{} executions", status.loaded));
        line("dirty", status.dirty.to_string());
    }
    text
}

fn or_nobody(node: &str) -> String {
    if node.is_empty() { "nobody".to_owned() } else { node.to_owned() }
}

/// Columns as wide as their widest cell.
fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let rows = [vec!["A".to_owned(), "B".to_owned()], vec!["long".to_owned(), "x".to_owned()]];
        assert_eq!(table(&rows), "A     B\nlong  x\n");
    }

    #[test]
    fn a_shard_that_is_where_it_belongs_moves_nowhere() {
        let info = |served: &str| ShardInfo { shard: 3, served_by: served.into(), epoch: 2, wanted_by: "a".into() };
        let text = shards_table(&[info("a"), info("b"), info("")]);
        let lines: Vec<&str> = text.lines().skip(1).collect();
        assert_eq!(lines, ["3      2      a", "3      2      b          a", "3      2      nobody     a"]);
    }
}
