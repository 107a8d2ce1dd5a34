//! IP networks: whose `X-Forwarded-For` is trusted, and which clients are answered.
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};
use serde_json::Value;

use crate::limits::NETWORKS_MAX;

/// A list of networks. IPv4-mapped networks and addresses (`::ffff:10.0.0.0/104`) are those of IPv4.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Networks(Vec<IpNet>);

impl Networks {
    pub fn new(networks: impl IntoIterator<Item = IpNet>) -> Self {
        let canonical = |network: IpNet| match network.addr().to_canonical() {
            IpAddr::V4(address) if network.max_prefix_len() == 128 && network.prefix_len() >= 96 => {
                Ipv4Net::new(address, network.prefix_len() - 96).map_or(network, IpNet::V4)
            }
            _ => network,
        };
        Self(networks.into_iter().map(canonical).collect())
    }

    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|network| network.contains(&address))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Networks, or all peers (`*`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ForwardedAllowIps {
    All,
    Networks(Networks),
}

impl ForwardedAllowIps {
    /// Whether the `X-Forwarded-For` of this peer is trusted.
    pub fn contains(&self, peer: IpAddr) -> bool {
        match self {
            Self::All => true,
            Self::Networks(networks) => networks.contains(peer),
        }
    }
}

/// `server.allow_list` and `server.deny_list`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressLists {
    allow: Option<Networks>,
    deny: Networks,
}

impl AddressLists {
    /// `None` if both lists are empty: every client is answered.
    pub fn new(allow: Networks, deny: Networks) -> Option<Self> {
        let allow = (!allow.is_empty()).then_some(allow);
        (allow.is_some() || !deny.is_empty()).then_some(Self { allow, deny })
    }

    /// Whether a client with this address is answered. An address in both lists is denied.
    pub fn allows(&self, address: IpAddr) -> bool {
        !self.deny.contains(address) && self.allow.as_ref().is_none_or(|allow| allow.contains(address))
    }
}

/// `server.forwarded_allow_ips`.
pub fn forwarded_allow_ips(value: &Value) -> Result<ForwardedAllowIps, &'static str> {
    const EXPECTED: &str = "\"*\", or addresses and networks such as \"127.0.0.1,10.0.0.0/8\"";
    let items = items(value).ok_or(EXPECTED)?;
    if items.contains(&"*") {
        return Ok(ForwardedAllowIps::All);
    }
    parse(&items).map(ForwardedAllowIps::Networks).ok_or(EXPECTED)
}

/// `server.allow_list` and `server.deny_list`: null and an empty list exclude no client.
pub fn address_list(value: &Value) -> Result<Networks, &'static str> {
    const EXPECTED: &str =
        "addresses and networks such as [\"10.0.0.0/8\", \"2001:db8::/32\"], at most 1024 of them";
    if value.is_null() {
        return Ok(Networks::default());
    }
    items(value).and_then(|items| parse(&items)).ok_or(EXPECTED)
}

/// A list, or a comma-separated string.
fn items(value: &Value) -> Option<Vec<&str>> {
    match value {
        Value::String(text) => Some(text.split(',').map(str::trim).filter(|item| !item.is_empty()).collect()),
        Value::Array(items) => {
            Some(items.iter().map(|item| item.as_str().unwrap_or("")).map(str::trim).collect())
        }
        _ => None,
    }
}

fn parse(items: &[&str]) -> Option<Networks> {
    let network =
        |text: &&str| text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)).ok();
    let networks: Option<Vec<IpNet>> = items.iter().map(network).collect();
    networks.filter(|networks| networks.len() <= NETWORKS_MAX).map(Networks::new)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn deny_list_takes_precedence_and_an_empty_list_is_none() {
        let lists = |allow: Value, deny: Value| {
            AddressLists::new(address_list(&allow).expect("valid"), address_list(&deny).expect("valid"))
        };
        assert_eq!(lists(json!([]), json!(null)), None);
        assert_eq!(lists(json!(""), json!([])), None);
        for (allow, deny, address, expected) in [
            (json!(["10.0.0.0/8"]), json!([]), "10.1.2.3", true),
            (json!(["10.0.0.0/8"]), json!([]), "::ffff:10.1.2.3", true),
            (json!(["10.0.0.0/8"]), json!([]), "11.1.2.3", false),
            (json!(["10.0.0.0/8"]), json!([]), "2001:db8::1", false),
            (json!(["10.0.0.0/8"]), json!(["10.1.0.0/16"]), "10.1.2.3", false),
            (json!(["10.0.0.0/8"]), json!(["10.1.0.0/16"]), "10.2.2.3", true),
            (json!(null), json!("2001:db8::/32, 192.0.2.1"), "2001:db8::1", false),
            (json!(null), json!("2001:db8::/32, 192.0.2.1"), "192.0.2.1", false),
            (json!(null), json!("2001:db8::/32, 192.0.2.1"), "192.0.2.2", true),
            (json!(null), json!(["::ffff:192.0.2.0/120"]), "192.0.2.2", false),
        ] {
            let lists = lists(allow.clone(), deny.clone()).expect("a list");
            assert_eq!(
                lists.allows(address.parse().expect("an address")),
                expected,
                "{allow} {deny} {address}"
            );
        }
    }

    #[test]
    fn rejects_values_that_are_not_networks() {
        for value in [json!(["*"]), json!("10.0.0.0/33"), json!([7]), json!({}), json!(true), json!([""])] {
            assert!(address_list(&value).is_err(), "{value}");
        }
        let many = |count: usize| json!(vec!["10.0.0.1"; count]);
        assert!(address_list(&many(NETWORKS_MAX)).is_ok() && address_list(&many(NETWORKS_MAX + 1)).is_err());
    }
}
