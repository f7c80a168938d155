//! What of a schema leads to what, with each reference resolved as the library does it: known before the schema is compiled, so that
//! what is bounded is bounded before it costs anything.
//!
//! Forty references, each to two of the next, are 2⁴⁰ schemas that would all be asked about one event, and sixty thousand, each to
//! the next, are as many frames of a stack. What refers to itself is asked about a value once, since the library remembers what it
//! answered. It remembers nothing where it says what is wrong: that is asked for only where it ends soon ([`Graph::explains`]).

use std::collections::{BTreeMap, HashMap};

use jsonschema::{Draft, ReferencingError, Registry, uri};
use referencing::{Resolver, ResourceRef};
use serde_json::Value;

use super::files::Folder;

/// Schemas, with those that references lead to once for each reference.
pub(super) const MOST: u64 = 100_000;
/// In each other, with those that references lead to, as they are asked about an event of [`LEVELS`]: some 1 MiB of a stack.
pub(super) const DEEPEST: u32 = 2000;
/// Of an event, and the value in the last.
const LEVELS: usize = 127;
/// Schemas and values that are gone through to say what is wrong, and how many of them in each other.
const MOST_EXPLAINED: usize = 10_000;
const DEEPEST_EXPLAINED: usize = 256;

/// The subschemas that are reached, by numbers. The first is the whole.
pub(super) struct Graph {
    nodes: Vec<Node>,
    /// To say what is wrong may take longer than to find that something is.
    is_costly: bool,
    /// Schemas that lead back to themselves, of which is remembered what they answered of a value.
    remembered: usize,
}

#[derive(Default)]
struct Node {
    /// Asked about the same value.
    here: Vec<usize>,
    /// Asked about a member of this name.
    named: BTreeMap<String, usize>,
    /// Asked about members or elements.
    each: Vec<usize>,
    has_branches: bool,
}

impl Node {
    fn below(&self) -> impl Iterator<Item = usize> {
        self.named.values().chain(&self.each).copied()
    }

    fn all(&self) -> impl Iterator<Item = usize> {
        self.here.iter().copied().chain(self.below())
    }
}

/// Why there is none.
pub(super) enum Unbounded {
    Unresolved(ReferencingError),
    TooMany,
    TooDeep,
    /// It is asked about a value whether it matches when it matches.
    Endless,
}

impl From<ReferencingError> for Unbounded {
    fn from(error: ReferencingError) -> Self {
        Self::Unresolved(error)
    }
}

impl Graph {
    /// Reads what the schema refers to, and follows it from the first file on.
    ///
    /// # Errors
    /// Something is not found, or it leads to too much.
    pub fn of(root: &Value, base: Option<&str>, folder: &Folder) -> Result<Self, Unbounded> {
        let id = root.get("$id").and_then(Value::as_str);
        let base = uri::from_str(base.or(id).unwrap_or_default())?;
        let registry = Registry::new().retriever(folder.clone()).draft(Draft::Draft202012);
        let registry = registry.add(base.as_str(), root)?.prepare()?;
        let resolver = registry.resolver(base);
        let root = resolver.lookup("")?.contents();
        let mut reading = Reading { nodes: Vec::new(), known: HashMap::new(), left: Vec::new(), dynamic: Vec::new() };
        reading.number(root, &resolver)?;
        reading.read()?;
        let nodes = reading.nodes;
        let (count, deepest, remembered) = measure(&nodes);
        if count > MOST {
            return Err(Unbounded::TooMany);
        }
        if deepest.max(depth(&nodes)?) > DEEPEST {
            return Err(Unbounded::TooDeep);
        }
        let is_costly =
            remembered > 0 || deepest as usize > DEEPEST_EXPLAINED || nodes.iter().any(|node| node.has_branches);
        Ok(Self { nodes, is_costly, remembered })
    }

    pub fn remembered(&self) -> usize {
        self.remembered
    }

    /// Whether it ends soon to say what of this value is wrong.
    pub fn explains(&self, value: &Value) -> bool {
        !self.is_costly || self.goes_through(0, value, &mut MOST_EXPLAINED.clone(), DEEPEST_EXPLAINED)
    }

    fn goes_through(&self, node: usize, value: &Value, left: &mut usize, deepest: usize) -> bool {
        let Node { here, named, each, .. } = &self.nodes[node];
        let below = match value {
            Value::Object(members) => members.len(),
            Value::Array(elements) => elements.len(),
            _ => 0,
        };
        if deepest == 0 || *left <= below {
            return false;
        }
        *left -= below + 1;
        let mut through = |node, value: &Value| self.goes_through(node, value, left, deepest - 1);
        here.iter().all(|node| through(*node, value))
            && match value {
                Value::Object(members) => members
                    .iter()
                    .all(|(name, value)| named.get(name).into_iter().chain(each).all(|node| through(*node, value))),
                Value::Array(elements) => elements.iter().all(|value| each.iter().all(|node| through(*node, value))),
                _ => true,
            }
    }
}

struct Reading<'r> {
    nodes: Vec<Node>,
    /// By their addresses.
    known: HashMap<*const Value, usize>,
    left: Vec<(usize, &'r Value, Resolver<'r>)>,
    /// By `$dynamicAnchor`, and what `$dynamicRef` asks for one: which it is depends on the way there, so it is each.
    dynamic: Vec<Dynamic<'r>>,
}

enum Dynamic<'r> {
    Anchor(&'r str, usize),
    Reference(&'r str, usize),
}

impl<'r> Reading<'r> {
    fn number(&mut self, value: &'r Value, resolver: &Resolver<'r>) -> Result<usize, Unbounded> {
        let next = self.nodes.len();
        if let Some(known) = self.known.get(&std::ptr::from_ref(value)) {
            return Ok(*known);
        }
        if next as u64 > MOST {
            return Err(Unbounded::TooMany);
        }
        self.known.insert(value, next);
        self.nodes.push(Node::default());
        self.left.push((next, value, resolver.in_subresource(ResourceRef::new(value, Draft::Draft202012))?));
        Ok(next)
    }

    fn read(&mut self) -> Result<(), Unbounded> {
        while let Some((number, value, resolver)) = self.left.pop() {
            let Value::Object(members) = value else { continue };
            let mut node = Node::default();
            for (keyword, value) in members {
                match (keyword.as_str(), value) {
                    ("$ref" | "$dynamicRef", Value::String(reference)) => {
                        let (target, resolver, _) = resolver.lookup(reference)?.into_inner();
                        node.here.push(self.number(target, &resolver)?);
                        if keyword == "$dynamicRef" {
                            let name = reference.rsplit_once('#').map_or("", |(_, name)| name);
                            self.dynamic.push(Dynamic::Reference(name, number));
                        }
                        // There may be anchors in it.
                        let document = resolver.lookup("")?;
                        self.number(document.contents(), document.resolver())?;
                    }
                    ("$dynamicAnchor", Value::String(name)) => self.dynamic.push(Dynamic::Anchor(name, number)),
                    ("allOf" | "anyOf" | "oneOf", Value::Array(schemas)) => {
                        node.has_branches |= keyword != "allOf";
                        for schema in schemas {
                            node.here.push(self.number(schema, &resolver)?);
                        }
                    }
                    ("not" | "if" | "then" | "else", schema) => node.here.push(self.number(schema, &resolver)?),
                    ("dependentSchemas" | "dependencies", Value::Object(schemas)) => {
                        for schema in schemas.values() {
                            node.here.push(self.number(schema, &resolver)?);
                        }
                    }
                    ("properties", Value::Object(schemas)) => {
                        for (name, schema) in schemas {
                            node.named.insert(name.clone(), self.number(schema, &resolver)?);
                        }
                    }
                    ("patternProperties", Value::Object(schemas)) => {
                        for schema in schemas.values() {
                            node.each.push(self.number(schema, &resolver)?);
                        }
                    }
                    ("prefixItems" | "items", Value::Array(schemas)) => {
                        for schema in schemas {
                            node.each.push(self.number(schema, &resolver)?);
                        }
                    }
                    (
                        "additionalProperties"
                        | "unevaluatedProperties"
                        | "propertyNames"
                        | "items"
                        | "contains"
                        | "unevaluatedItems"
                        | "additionalItems",
                        schema,
                    ) => node.each.push(self.number(schema, &resolver)?),
                    // They are asked where something refers to them; there may be anchors in them.
                    ("$defs" | "definitions", Value::Object(schemas)) => {
                        for schema in schemas.values() {
                            self.number(schema, &resolver)?;
                        }
                    }
                    _ => {}
                }
            }
            self.nodes[number] = node;
        }
        for of in &self.dynamic {
            let Dynamic::Reference(name, from) = of else { continue };
            let targets = self.dynamic.iter().filter_map(|of| match of {
                Dynamic::Anchor(anchor, number) if anchor == name => Some(*number),
                _ => None,
            });
            self.nodes[*from].here.extend(targets);
        }
        Ok(())
    }
}

/// How many they are with each reference replaced by what it leads to, how deep in each other, and how many of them lead back to
/// themselves, where they end.
fn measure(nodes: &[Node]) -> (u64, u32, usize) {
    struct Open {
        node: usize,
        left: std::vec::IntoIter<usize>,
        count: u64,
        depth: u32,
    }
    let open = |node: usize| Open { node, left: nodes[node].all().collect::<Vec<_>>().into_iter(), count: 1, depth: 0 };
    // `None` while it is open.
    let mut known: HashMap<usize, Option<(u64, u32)>> = HashMap::from([(0, None)]);
    let mut remembered = std::collections::BTreeSet::new();
    let mut stack = vec![open(0)];
    loop {
        let Some(last) = stack.last_mut() else { return (0, 0, 0) };
        let (count, depth) = match last.left.next() {
            Some(next) => match known.get(&next) {
                Some(Some(known)) => *known,
                Some(None) => {
                    remembered.insert(next);
                    continue;
                }
                None => {
                    known.insert(next, None);
                    stack.push(open(next));
                    continue;
                }
            },
            None => {
                let whole = (last.count, last.depth + 1);
                known.insert(last.node, Some(whole));
                stack.pop();
                if stack.is_empty() {
                    return (whole.0, whole.1, remembered.len());
                }
                whole
            }
        };
        if let Some(last) = stack.last_mut() {
            last.count = last.count.saturating_add(count);
            last.depth = last.depth.max(depth);
        }
    }
}

/// How many are asked within each other about the deepest event.
fn depth(nodes: &[Node]) -> Result<u32, Unbounded> {
    let order = order(nodes)?;
    let mut below = vec![0_u32; nodes.len()];
    for _ in 0..=LEVELS {
        let mut depth = vec![0_u32; nodes.len()];
        for &node in &order {
            let here = nodes[node].here.iter().map(|of| depth[*of]);
            depth[node] = 1 + here.chain(nodes[node].below().map(|of| below[of])).max().unwrap_or_default();
        }
        if depth == below || depth[0] > DEEPEST {
            return Ok(depth[0]);
        }
        below = depth;
    }
    Ok(below[0])
}

/// Those that are asked about the same value before those that ask them.
fn order(nodes: &[Node]) -> Result<Vec<usize>, Unbounded> {
    let mut asking = vec![Vec::new(); nodes.len()];
    let mut left: Vec<usize> = nodes.iter().map(|node| node.here.len()).collect();
    for (number, node) in nodes.iter().enumerate() {
        node.here.iter().for_each(|of| asking[*of].push(number));
    }
    let mut order: Vec<usize> = (0..nodes.len()).filter(|number| left[*number] == 0).collect();
    let mut at = 0;
    while let Some(&node) = order.get(at) {
        at += 1;
        for &of in &asking[node] {
            left[of] -= 1;
            if left[of] == 0 {
                order.push(of);
            }
        }
    }
    if order.len() < nodes.len() { Err(Unbounded::Endless) } else { Ok(order) }
}
