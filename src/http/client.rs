//! Where a request comes from: the one place that says so.
//!
//! It is who is connected. What PROXY protocol said of a connection is its peer here already (`proxy_protocol`). Only where that is
//! one of `http.trusted_proxies` its fields are read: `X-Forwarded-For`, and `Forwarded` (RFC 7239), whose entries stand in the order of
//! the way. From the right, the first that is no trusted proxy is the client, as with nginx's `real_ip_recursive` and Envoy. What cannot be
//! read ends the way: whoever reported it is the client then.
//!
//! Proxies write one of the fields and hand on the other as a client sent it. So where both are there and disagree, neither is
//! believed.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use actix_http::RequestHead;
use actix_web::http::header::{FORWARDED, HeaderName, HeaderValue, X_FORWARDED_FOR};

use crate::config::TrustedProxies;

/// Trusted proxies that a request has come through, at most. Others before them are not looked for.
const MOST_HOPS: usize = 32;

/// The address of whoever sent the request with this head. IPv4 that is mapped into IPv6 is IPv4.
pub fn client(head: &RequestHead, proxies: &TrustedProxies) -> IpAddr {
    // A connection that is gone has none any more.
    let peer = head.peer_addr.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |peer| peer.ip().to_canonical());
    if !proxies.contains(peer) {
        return peer;
    }
    let back = |name: &HeaderName, hops: fn(&HeaderValue) -> Vec<Hop>| -> Option<IpAddr> {
        let mut lines: Vec<&HeaderValue> = head.headers.get_all(name).collect();
        lines.reverse();
        let is_there = !lines.is_empty();
        is_there.then(|| walk(peer, lines.into_iter().flat_map(hops), proxies))
    };
    match (back(&X_FORWARDED_FOR, listed), back(&FORWARDED, forwarded)) {
        (None, None) => peer,
        (Some(client), None) | (None, Some(client)) => client,
        (Some(listed), Some(forwarded)) if listed == forwarded => listed,
        (Some(_), Some(_)) => peer,
    }
}

/// An entry of a field; `None` where it is no address.
type Hop = Option<IpAddr>;

/// From the right.
fn walk(peer: IpAddr, hops: impl Iterator<Item = Hop>, proxies: &TrustedProxies) -> IpAddr {
    let mut client = peer;
    for hop in hops.take(MOST_HOPS) {
        let Some(address) = hop else { break };
        client = address;
        if !proxies.contains(client) {
            break;
        }
    }
    client
}

/// The entries of one line of `X-Forwarded-For`, the last one first.
fn listed(line: &HeaderValue) -> Vec<Hop> {
    // What cannot be read in one entry, which may be a client's own, says nothing of the others.
    let entries = line.as_bytes().rsplit(|byte| *byte == b',').map(<[u8]>::trim_ascii);
    // A list may have empty elements (RFC 9110, 5.6.1).
    let named = entries.filter(|entry| !entry.is_empty()).take(MOST_HOPS);
    named.map(|entry| address(std::str::from_utf8(entry).ok()?)).collect()
}

/// The entries of one line of `Forwarded`, the last one first. A line that cannot be read as a whole is one that says nothing.
fn forwarded(line: &HeaderValue) -> Vec<Hop> {
    let elements = line.to_str().ok().and_then(|line| split(line, ','));
    let Some(elements) = elements else { return vec![None] };
    let named = elements.into_iter().rev().filter(|element| !element.trim().is_empty());
    named.take(MOST_HOPS).map(|element| address(&for_of(element)?)).collect()
}

/// The value of `for` in an element.
fn for_of(element: &str) -> Option<String> {
    let pairs = split(element, ';')?;
    let mut values = pairs.into_iter().filter_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        name.trim().eq_ignore_ascii_case("for").then(|| value.trim())
    });
    let (Some(value), None) = (values.next(), values.next()) else { return None };
    let Some(quoted) = value.strip_prefix('"') else { return Some(value.to_owned()) };
    let mut text = String::new();
    let mut signs = quoted.strip_suffix('"')?.chars();
    while let Some(sign) = signs.next() {
        text.push(if sign == '\\' { signs.next()? } else { sign });
    }
    Some(text)
}

/// The parts between these signs, but for those within quotation marks; `None` where one of these is not closed.
fn split(text: &str, by: char) -> Option<Vec<&str>> {
    let (mut parts, mut from, mut is_quoted) = (Vec::new(), 0, false);
    let mut signs = text.char_indices();
    while let Some((at, sign)) = signs.next() {
        match sign {
            '"' => is_quoted = !is_quoted,
            '\\' if is_quoted => _ = signs.next(),
            _ if sign == by && !is_quoted => {
                parts.push(&text[from..at]);
                from = at + sign.len_utf8();
            }
            _ => {}
        }
    }
    parts.push(&text[from..]);
    (!is_quoted).then_some(parts)
}

/// An address, with a port or without one, IPv6 in brackets or not. `unknown` and `_hidden` are none.
fn address(text: &str) -> Hop {
    let in_brackets = || text.strip_prefix('[')?.strip_suffix(']')?.parse::<IpAddr>().ok();
    let address =
        text.parse::<IpAddr>().ok().or_else(|| Some(text.parse::<SocketAddr>().ok()?.ip())).or_else(in_brackets);
    address.map(|address| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    const FOR: &str = "x-forwarded-for";

    fn client_of(peer: &str, fields: &[(&str, &str)]) -> String {
        let proxies = ["127.0.0.1", "10.0.0.0/8", "2001:db8:ffff::/48"].map(str::to_owned).to_vec().into();
        let mut head = RequestHead::default();
        head.peer_addr = Some(SocketAddr::new(peer.parse().unwrap(), 1));
        for (name, value) in fields {
            let (name, value) =
                (HeaderName::try_from(*name).unwrap(), HeaderValue::from_bytes(value.as_bytes()).unwrap());
            head.headers.append(name, value);
        }
        client(&head, &proxies).to_string()
    }

    #[test]
    fn a_stranger_is_who_is_connected_whatever_it_says() {
        for peer in ["192.0.2.1", "2001:db8::1"] {
            let said = [
                (FOR, "127.0.0.1"),
                ("forwarded", "for=10.0.0.1"),
                ("x-real-ip", "1.1.1.1"),
                ("true-client-ip", "1.1.1.1"),
            ];
            assert_eq!(client_of(peer, &said), peer);
        }
        assert_eq!(client_of("::ffff:192.0.2.1", &[(FOR, "198.51.100.1")]), "192.0.2.1");
    }

    #[test]
    fn from_the_right_the_first_that_is_not_trusted_is_the_client() {
        for (lines, client) in [
            (&["198.51.100.1"][..], "198.51.100.1"),
            (&["1.1.1.1, 198.51.100.1"], "198.51.100.1"),
            (&["1.1.1.1, 198.51.100.1, 10.2.3.4"], "198.51.100.1"),
            (&["1.1.1.1", "198.51.100.1,10.2.3.4", "10.2.3.5"], "198.51.100.1"),
            (&["198.51.100.1:4711"], "198.51.100.1"),
            (&["2001:db8::7"], "2001:db8::7"),
            (&["[2001:db8::7]:4711, 2001:db8:ffff::1"], "2001:db8::7"),
            (&["[2001:db8::7]"], "2001:db8::7"),
            (&["::ffff:198.51.100.1"], "198.51.100.1"),
            (&["198.51.100.1, ::ffff:10.0.0.1"], "198.51.100.1"),
            (&["198.51.100.1 ,, "], "198.51.100.1"),
            // All of them are trusted: the first of the way.
            (&["10.0.0.9, 10.0.0.8"], "10.0.0.9"),
            // What cannot be read ends the way.
            (&[""], "127.0.0.1"),
            (&["unknown"], "127.0.0.1"),
            (&["198.51.100.1, garbage"], "127.0.0.1"),
            (&["198.51.100.1, garbage, 10.0.0.8"], "10.0.0.8"),
            (&["198.51.100.1, \u{e9}"], "127.0.0.1"),
            (&["1.2.3, 10.0.0.8"], "10.0.0.8"),
            // What is to the left of the client is its own.
            (&["\u{e9}, 198.51.100.1"], "198.51.100.1"),
            (&["1.1.1.1 \u{e9}\t, 198.51.100.1, 10.0.0.8"], "198.51.100.1"),
        ] {
            let fields: Vec<_> = lines.iter().map(|line| (FOR, *line)).collect();
            assert_eq!(client_of("127.0.0.1", &fields), client, "{lines:?}");
            assert_eq!(client_of("::ffff:127.0.0.1", &fields), client, "{lines:?}");
        }
        let long = vec!["10.0.0.1"; 2000].join(",");
        assert_eq!(client_of("127.0.0.1", &[(FOR, &format!("1.1.1.1,{long}"))]), "10.0.0.1", "nobody has so many");
    }

    #[test]
    fn forwarded_is_read_as_its_rfc_writes_it() {
        for (lines, client) in [
            (&["for=198.51.100.1"][..], "198.51.100.1"),
            (&["For=\"198.51.100.1:4711\";proto=https;by=10.0.0.1"], "198.51.100.1"),
            (&["for=\"[2001:db8::1]:4711\""], "2001:db8::1"),
            (&["for=\"[2001:db8::1]\" ; host=\"a,b;for=c\""], "2001:db8::1"),
            (&["for=1.1.1.1, for=198.51.100.1;proto=http , for=10.0.0.3"], "198.51.100.1"),
            (&["for=1.1.1.1", "for=198.51.100.1"], "198.51.100.1"),
            (&["for=\"198.51.100\\.1\""], "198.51.100.1"),
            (&["for=1.1.1.1, for=unknown"], "127.0.0.1"),
            (&["for=1.1.1.1, for=\"_hidden\", for=10.0.0.3"], "10.0.0.3"),
            (&["for=1.1.1.1, proto=https"], "127.0.0.1"),
            (&["for=1.1.1.1;for=2.2.2.2"], "127.0.0.1"),
            (&["198.51.100.1"], "127.0.0.1"),
            (&[""], "127.0.0.1"),
            // A client's quotation mark swallows what its proxy says.
            (&["for=\"1.1.1.1, for=198.51.100.1"], "127.0.0.1"),
            (&["for=\"1.1.1.1\\\", for=198.51.100.1"], "127.0.0.1"),
            (&["for=\"1.1.1.1", "for=198.51.100.1"], "198.51.100.1"),
        ] {
            let fields: Vec<_> = lines.iter().map(|line| ("forwarded", *line)).collect();
            assert_eq!(client_of("127.0.0.1", &fields), client, "{lines:?}");
        }
    }

    #[test]
    fn where_both_fields_are_there_they_have_to_agree() {
        let both = |listed, forwarded| client_of("10.0.0.1", &[(FOR, listed), ("forwarded", forwarded)]);
        assert_eq!(both("198.51.100.1", "for=198.51.100.1"), "198.51.100.1");
        assert_eq!(both("198.51.100.1, 10.0.0.2", "for=\"198.51.100.1:7\""), "198.51.100.1");
        assert_eq!(both("198.51.100.1", "for=1.1.1.1"), "10.0.0.1");
        assert_eq!(both("198.51.100.1", "for=unknown"), "10.0.0.1");
        assert_eq!(both("1.1.1.1", "for=198.51.100.1"), "10.0.0.1");
    }
}
