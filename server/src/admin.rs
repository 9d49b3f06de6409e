//! `perdure admin`: asks any node of a cluster about all of it.

use std::{fmt::Write, net::SocketAddr, time::Duration};

use clap::{Args, Subcommand};
use perdure_proto::perdure::node::v1::{
    DrainRequest, MembersRequest, MembersResponse, QueuesRequest, QueuesResponse, ShardInfo, ShardRequest,
    ShardResponse, ShardsRequest, ShardsResponse, SplitRequest, admin_client::AdminClient,
};
use serde_json::{Value, json};
use tonic::transport::{Channel, Endpoint};

use crate::{cluster_tls::TlsArgs, exit::Failure};

const TIMEOUT: Duration = Duration::from_secs(10);
const FOLLOW_INTERVAL: Duration = Duration::from_millis(500);

#[derive(Debug, Args)]
pub struct AdminArgs {
    /// Cluster port of any node, or admin port of `perdure dev`
    #[arg(long, global = true, default_value = "127.0.0.1:7234", env = "PERDURE_ADMIN_ADDRESS")]
    address: SocketAddr,
    #[command(flatten)]
    tls: TlsArgs,
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
    /// List the shards: who serves them, and who should; how far they are split
    Shards {
        #[command(subcommand)]
        command: Option<ShardsCommand>,
    },
    /// Show one shard
    Shard { shard: u32 },
    /// List the task queues in memory, the longest backlogs first
    Queues,
    /// Make a node hand over all its shards and end
    Drain {
        /// Its id or its address, or the beginning of one
        node: String,
    },
    /// Split each shard in two while they are served. The nodes do it; progress is in `perdure admin shards`
    Split(SplitArgs),
}

#[derive(Debug, Subcommand)]
enum ShardsCommand {
    /// Split each shard in two while they are served, as `perdure admin split` does
    Split(SplitArgs),
}

#[derive(Debug, Args)]
struct SplitArgs {
    /// How many shards there are to be, a power of two; twice as many as there are if not given
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    shards: u32,
    /// Return when all shards are split, and say how far they are meanwhile
    #[arg(long)]
    wait: bool,
}

pub async fn run(args: AdminArgs) -> Result<(), Failure> {
    let failed = |reason: String| Failure::new(Failure::OTHER, format!("{}: {reason}", args.address));
    let tls = args.tls.clone().files()?.map(|files| files.read()).transpose()?;
    let scheme = if tls.is_some() { "https" } else { "http" };
    let endpoint = Endpoint::from_shared(format!("{scheme}://{}", args.address));
    let endpoint = endpoint.and_then(|endpoint| match tls {
        Some(tls) => endpoint.tls_config(tls.client),
        None => Ok(endpoint),
    });
    let endpoint = endpoint.map_err(|error| failed(error.to_string()))?;
    let channel = endpoint.connect_timeout(TIMEOUT).timeout(TIMEOUT).connect().await;
    let hint =
        "no node answers there; name a node's cluster port with --address, and certificates with --tls-ca and so on";
    let channel = channel.map_err(|_| failed(hint.to_owned()))?;
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
        AdminCommand::Shards { command: None } => {
            let response = client.shards(ShardsRequest::default()).await?.into_inner();
            (shards_json(&response), format!("{}\n{}", progress(&response), shards_table(&response.shards)))
        }
        AdminCommand::Split(args) | AdminCommand::Shards { command: Some(ShardsCommand::Split(args)) } => {
            let split = client.split(SplitRequest { slots: args.shards }).await?.into_inner();
            let begun = format!("{} shards are split into {}\n", split.slots, split.goal);
            if args.wait {
                follow(&mut client, as_json).await?;
            }
            (json!({ "slots": split.slots, "goal": split.goal }), begun)
        }
        AdminCommand::Shard { shard } => {
            let found = client.shard(ShardRequest { shard }).await?.into_inner();
            (status_json(&found), status_text(&found))
        }
        AdminCommand::Queues => {
            let found = client.queues(QueuesRequest::default()).await?.into_inner();
            (queues_json(&found), queues_table(&found))
        }
        AdminCommand::Drain { node } => {
            let node = client.drain(DrainRequest { node, forwarded: false }).await?.into_inner().node;
            (json!({ "node": node }), format!("{node} drains and ends\n"))
        }
    };
    Ok(if as_json { format!("{json:#}\n") } else { table })
}

/// Shows how far the split is, until it is done.
async fn follow(client: &mut AdminClient<Channel>, as_json: bool) -> Result<(), tonic::Status> {
    let mut shown = String::new();
    loop {
        let shards = client.shards(ShardsRequest::default()).await?.into_inner();
        let now = progress(&shards);
        if now != shown && !as_json {
            println!("{now}");
        }
        if shards.slots >= shards.goal {
            return Ok(());
        }
        shown = now;
        tokio::time::sleep(FOLLOW_INTERVAL).await;
    }
}

/// Shards of the size that all are to have.
fn finished(response: &ShardsResponse) -> usize {
    response.shards.iter().filter(|info| info.slots >= response.goal).count()
}

fn progress(response: &ShardsResponse) -> String {
    if response.slots >= response.goal {
        return format!("{} shards", response.shards.len());
    }
    format!("{} shards, being split: {} of {} are done", response.shards.len(), finished(response), response.goal)
}

fn shards_json(response: &ShardsResponse) -> Value {
    json!({
        "slots": response.slots, "goal": response.goal, "done": finished(response),
        "shards": response.shards.iter().map(shard_json).collect::<Value>(),
    })
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
    json!({
        "shard": info.shard, "of": info.slots, "servedBy": info.served_by, "epoch": info.epoch,
        "wantedBy": info.wanted_by,
    })
}

fn shards_table(shards: &[ShardInfo]) -> String {
    let mut rows = vec![["SHARD", "OF", "EPOCH", "SERVED BY", "MOVES TO"].map(str::to_owned).to_vec()];
    for info in shards {
        let moves = if info.served_by == info.wanted_by { String::new() } else { info.wanted_by.clone() };
        let (shard, of, epoch) = (info.shard.to_string(), info.slots.to_string(), info.epoch.to_string());
        rows.push(vec![shard, of, epoch, or_nobody(&info.served_by), moves]);
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
        fields.insert("waiting".to_owned(), json!(status.waiting));
        fields.insert("uncommitted".to_owned(), json!(status.uncommitted));
        fields.insert("commitLatencyNs".to_owned(), json!(status.commit_latency_ns));
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
        line("shard", format!("{} of {}", info.shard, info.slots));
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
        line("waiting", format!("{} calls", status.waiting));
        line("uncommitted", format!("{} answers and effects", status.uncommitted));
        line("commit", format!("{:.1}ms", status.commit_latency_ns as f64 / 1e6));
    }
    text
}

fn queues_json(response: &QueuesResponse) -> Value {
    let queues = response.queues.iter().map(|queue| {
        json!({
            "name": queue.name, "kind": queue.kind, "namespaceId": queue.namespace_id, "home": queue.node,
            "pollers": queue.pollers, "lastPollTimeNs": queue.last_poll_ns, "backlog": queue.backlog,
            "backlogAgeNs": queue.backlog_age_ns, "addedPerSecond": queue.added_per_second,
            "dispatchedPerSecond": queue.dispatched_per_second,
        })
    });
    json!({ "total": response.total, "silent": response.silent, "queues": queues.collect::<Value>() })
}

fn queues_table(response: &QueuesResponse) -> String {
    let heads = ["TASK QUEUE", "KIND", "NAMESPACE", "POLLERS", "BACKLOG", "OLDEST", "HOME"].map(str::to_owned);
    let mut rows = vec![heads.to_vec()];
    for queue in &response.queues {
        rows.push(vec![
            queue.name.clone(),
            queue.kind.clone(),
            queue.namespace_id.clone(),
            queue.pollers.to_string(),
            queue.backlog.to_string(),
            format!("{:.1}s", queue.backlog_age_ns as f64 / 1e9),
            queue.node.clone(),
        ]);
    }
    let mut text = table(&rows);
    for node in &response.silent {
        // Writing to a string does not fail.
        let _ = writeln!(text, "no answer from {node}");
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
        let info = |served: &str| ShardInfo {
            shard: 3,
            served_by: served.into(),
            epoch: 2,
            wanted_by: "a".into(),
            slots: 64,
            status: None,
        };
        let text = shards_table(&[info("a"), info("b"), info("")]);
        let lines: Vec<&str> = text.lines().skip(1).collect();
        assert_eq!(lines, ["3      64  2      a", "3      64  2      b          a", "3      64  2      nobody     a"]);
    }
}
