//! Networks of their own for servers, so that they can be cut off from each other and from Cassandra, in each direction.
//!
//! A bridge in the namespace of this process has one cable to each server's namespace. Cassandra listens on addresses of
//! 127.0.0.0/8 here; a server's namespace routes them over the bridge, which `route_localnet` permits. A direction is cut by
//! a wrong hardware address: what is sent goes nowhere, silently, as over a cable that is broken. It takes root.

use std::net::Ipv4Addr;
use std::process::Command;

use anyhow::{Context, Result, bail};

const BRIDGE: &str = "perdure0";
/// Of this process, on the bridge; .1 to .9 are the servers'.
const HERE: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 254);
/// Nobody has this one.
const NOWHERE: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 253);
const NOBODY: &str = "02:00:00:00:00:99";

/// The bridge and all namespaces go away with this value.
pub struct Net {
    servers: Vec<u8>,
}

impl Net {
    pub fn make() -> Result<Self> {
        // What a run that was killed has left.
        drop(Self { servers: (1..=9).collect() });
        let net = Self { servers: Vec::new() };
        ip(&["link", "add", BRIDGE, "type", "bridge"]).context("it takes root to make networks")?;
        ip(&["addr", "add", &format!("{HERE}/24"), "dev", BRIDGE])?;
        ip(&["link", "set", BRIDGE, "up"])?;
        run("sysctl", &["-q", "-w", &format!("net.ipv4.conf.{BRIDGE}.route_localnet=1")])?;
        Ok(net)
    }

    /// A namespace for one server; gives its name and the server's address.
    pub fn add(&mut self, number: u8) -> Result<(String, Ipv4Addr)> {
        let (space, cable, address) = (space(number), format!("perdure-c{number}"), address(number));
        self.servers.push(number);
        ip(&["netns", "add", &space])?;
        ip(&["link", "add", &cable, "type", "veth", "peer", "name", "eth0", "netns", &space])?;
        ip(&["link", "set", &cable, "master", BRIDGE, "up"])?;
        let inside = |arguments: &[&str]| ip(&[&["-n", space.as_str()], arguments].concat());
        inside(&["link", "set", "lo", "up"])?;
        // Addresses of 127.0.0.0/8 are Cassandra's.
        inside(&["addr", "del", "127.0.0.1/8", "dev", "lo"])?;
        inside(&["addr", "add", &format!("{address}/24"), "dev", "eth0"])?;
        for device in ["all", "eth0"] {
            let setting = format!("net.ipv4.conf.{device}.route_localnet=1");
            ip(&["netns", "exec", &space, "sysctl", "-q", "-w", &setting])?;
        }
        inside(&["link", "set", "eth0", "up"])?;
        inside(&["route", "add", "127.0.0.0/8", "via", &HERE.to_string()])?;
        inside(&["neigh", "replace", &NOWHERE.to_string(), "lladdr", NOBODY, "dev", "eth0", "nud", "permanent"])?;
        Ok((space, address))
    }

    /// What one server sends to another one goes nowhere.
    pub fn cut(&self, from: u8, to: u8) -> Result<()> {
        let to = address(to).to_string();
        ip(&["-n", &space(from), "neigh", "replace", &to, "lladdr", NOBODY, "dev", "eth0", "nud", "permanent"])
    }

    pub fn cut_cassandra(&self, from: u8) -> Result<()> {
        ip(&["-n", &space(from), "route", "replace", "127.0.0.0/8", "via", &NOWHERE.to_string()])
    }

    pub fn heal(&self) -> Result<()> {
        for from in &self.servers {
            for to in self.servers.iter().filter(|to| *to != from) {
                // There may be none.
                let _ = ip(&["-n", &space(*from), "neigh", "del", &address(*to).to_string(), "dev", "eth0"]);
            }
            ip(&["-n", &space(*from), "route", "replace", "127.0.0.0/8", "via", &HERE.to_string()])?;
        }
        Ok(())
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for number in &self.servers {
            let _ = ip(&["netns", "del", &space(*number)]);
        }
        let _ = ip(&["link", "del", BRIDGE]);
    }
}

fn space(number: u8) -> String {
    format!("perdure-{number}")
}

fn address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, number)
}

fn ip(arguments: &[&str]) -> Result<()> {
    run("ip", arguments)
}

fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let output = Command::new(program).args(arguments).output().with_context(|| format!("cannot run {program}"))?;
    if !output.status.success() {
        bail!("`{program} {}` failed: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
