//! `http.trusted_proxies`: whose word on where a request comes from is taken.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};
use serde::{Deserialize, Serialize};

/// Addresses and networks, as they are written and as they are looked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<String>", into = "Vec<String>")]
pub struct TrustedProxies {
    written: Vec<String>,
    /// Those that can be read: [`TrustedProxies::broken_rules`] says of the others what is wrong.
    networks: Vec<IpNet>,
}

impl From<Vec<String>> for TrustedProxies {
    fn from(written: Vec<String>) -> Self {
        let networks = written.iter().filter_map(|text| parse(text).ok()).collect();
        Self { written, networks }
    }
}

impl From<TrustedProxies> for Vec<String> {
    fn from(proxies: TrustedProxies) -> Self {
        proxies.written
    }
}

/// Each is compared with each address on a request's way. Content delivery networks have some hundreds.
const MOST: usize = 1024;

impl TrustedProxies {
    pub fn is_empty(&self) -> bool {
        self.networks.is_empty()
    }

    /// Whether this is one of them. An IPv4 address that is mapped into IPv6 is to be given as what it is.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.networks.iter().any(|network| network.contains(&address))
    }

    /// What is wrong with them, in words.
    pub(super) fn broken_rules(&self) -> Vec<String> {
        let wrong = self.written.iter().filter_map(|text| Some(format!("{text:?} {}", parse(text).err()?)));
        let many = (self.written.len() > MOST)
            .then(|| format!("has {} entries, and {MOST} may be: write networks in their place", self.written.len()));
        wrong.chain(many).collect()
    }
}

const RULE: &str =
    "is no address and no network: write those of the proxies, such as 10.0.0.7, 10.0.0.0/8 or 2001:db8::/32";

fn parse(text: &str) -> Result<IpNet, String> {
    let network = match (text.parse::<IpAddr>(), text.parse::<IpNet>()) {
        (Ok(address), _) => IpNet::from(address.to_canonical()),
        (_, Ok(network)) => canonical(network),
        _ => return Err(RULE.to_owned()),
    };
    if network.prefix_len() == 0 {
        return Err(
            "is everybody, and anybody could say where they come from: name the proxies' own addresses".to_owned()
        );
    }
    if network.trunc() != network {
        return Err(format!(
            "has more than its network: write {}, or the address without /{}",
            network.trunc(),
            network.prefix_len()
        ));
    }
    Ok(network)
}

/// A network of IPv4 addresses that are mapped into IPv6 is one of IPv4.
fn canonical(network: IpNet) -> IpNet {
    const MAPPED: u8 = 96;
    let (IpAddr::V4(address), true, Some(prefix)) =
        (network.addr().to_canonical(), network.addr().is_ipv6(), network.prefix_len().checked_sub(MAPPED))
    else {
        return network;
    };
    Ipv4Net::new(address, prefix).map_or(network, IpNet::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxies(written: &[&str]) -> TrustedProxies {
        written.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>().into()
    }

    #[test]
    fn addresses_and_networks_are_found_and_no_others() {
        let proxies = proxies(&[
            "10.0.0.0/8",
            "192.0.2.7",
            "2001:db8::/32",
            "::1",
            "::ffff:198.51.100.0/120",
            "::ffff:203.0.113.9",
        ]);
        assert_eq!(proxies.broken_rules(), [""; 0]);
        for (address, is_trusted) in [
            ("10.255.0.1", true),
            ("11.0.0.1", false),
            ("192.0.2.7", true),
            ("192.0.2.8", false),
            ("2001:db8:ffff::1", true),
            ("2001:db9::1", false),
            ("::1", true),
            ("::2", false),
            ("198.51.100.77", true),
            ("198.51.101.77", false),
            ("203.0.113.9", true),
        ] {
            assert_eq!(proxies.contains(address.parse().unwrap()), is_trusted, "{address}");
        }
        assert!(!TrustedProxies::default().contains("127.0.0.1".parse().unwrap()));
    }

    #[test]
    fn what_is_no_proxy_is_told_what_to_write() {
        for (text, told) in [
            ("", "is no address and no network"),
            ("proxy.internal", "such as 10.0.0.7"),
            ("10.0.0.0/33", "is no address and no network"),
            ("10.0.0.1:80", "is no address and no network"),
            ("10.0.0.1/8", "write 10.0.0.0/8, or the address without /8"),
            ("2001:db8::1/32", "write 2001:db8::/32"),
            ("0.0.0.0/0", "is everybody"),
            ("::/0", "is everybody"),
            ("::ffff:0.0.0.0/96", "is everybody"),
        ] {
            let rules = proxies(&["10.0.0.7", text]).broken_rules();
            assert!(
                rules.len() == 1 && rules[0].starts_with(&format!("{text:?} ")) && rules[0].contains(told),
                "{rules:?}"
            );
        }
        assert!(proxies(&["10.0.0.7"; 1025]).broken_rules()[0].contains("1024 may be"));
    }
}
