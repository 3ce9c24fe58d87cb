//! Where a body has to hold texts. The library's `String` takes numbers and booleans as well and writes them out: what
//! was meant as a switch would be published as "true".
//!
//! Read from a type's schema once; a body is then held against it without allocating anything.

use std::{
    any::TypeId,
    collections::HashMap,
    sync::{LazyLock, PoisonError, RwLock},
};

use poem_openapi::{
    registry::{MetaSchema, MetaSchemaRef, Registry},
    types::Type,
};
use serde_json::Value;

/// What of a JSON value has to be text.
#[derive(Debug, PartialEq, Eq)]
pub enum Shape {
    /// Nothing in it.
    Free,
    Text,
    /// These fields of an object.
    Fields(Vec<(&'static str, Shape)>),
    /// Every field of an object, whatever its name.
    Map(Box<Shape>),
    Items(Box<Shape>),
    All(Vec<Shape>),
}

/// As many as there are types of bodies: they are never given back.
static KNOWN: LazyLock<RwLock<HashMap<TypeId, &'static Shape>>> = LazyLock::new(RwLock::default);

impl Shape {
    /// The shape of `T`, made when it is first asked for.
    pub fn of<T: Type + 'static>() -> &'static Self {
        let id = TypeId::of::<T>();
        let known = KNOWN.read().unwrap_or_else(PoisonError::into_inner).get(&id).copied();
        known.unwrap_or_else(|| {
            let mut registry = Registry::new();
            T::register(&mut registry);
            let shape = Self::read(&T::schema_ref(), &registry, &mut Vec::new());
            KNOWN
                .write()
                .unwrap_or_else(PoisonError::into_inner)
                .entry(id)
                .or_insert_with(|| Box::leak(Box::new(shape)))
        })
    }

    /// Whether everything that has to be text is: what is null or missing is for the type to judge.
    pub fn holds(&self, value: &Value) -> bool {
        match (self, value) {
            (Self::Text, value) => matches!(value, Value::String(_) | Value::Null),
            (Self::Fields(shapes), Value::Object(fields)) => {
                shapes.iter().all(|(name, shape)| fields.get(*name).is_none_or(|field| shape.holds(field)))
            }
            (Self::Map(shape), Value::Object(fields)) => fields.values().all(|field| shape.holds(field)),
            (Self::Items(shape), Value::Array(items)) => items.iter().all(|item| shape.holds(item)),
            (Self::All(shapes), value) => shapes.iter().all(|shape| shape.holds(value)),
            // Of another type altogether: the type refuses it.
            (Self::Free | Self::Fields(_) | Self::Map(_) | Self::Items(_), _) => true,
        }
    }

    /// `inside`: the named schemas that are being read, of which none is read within itself.
    fn read(schema: &MetaSchemaRef, registry: &Registry, inside: &mut Vec<String>) -> Self {
        match schema {
            MetaSchemaRef::Inline(schema) => Self::of_schema(schema, registry, inside),
            MetaSchemaRef::Reference(name) if inside.contains(name) => Self::Free,
            MetaSchemaRef::Reference(name) => {
                let Some(schema) = registry.schemas.get(name) else { return Self::Free };
                inside.push(name.clone());
                let shape = Self::of_schema(schema, registry, inside);
                inside.pop();
                shape
            }
        }
    }

    fn of_schema(schema: &MetaSchema, registry: &Registry, inside: &mut Vec<String>) -> Self {
        let mut shapes = Vec::new();
        if schema.ty == "string" {
            shapes.push(Self::Text);
        }
        let mut fields = Vec::new();
        for (name, field) in &schema.properties {
            match Self::read(field, registry, inside) {
                Self::Free => {}
                shape => fields.push((*name, shape)),
            }
        }
        if !fields.is_empty() {
            shapes.push(Self::Fields(fields));
        }
        let mut boxed = |part: &Option<Box<MetaSchemaRef>>, whole: fn(Box<Self>) -> Self| {
            let shape = part.as_ref().map_or(Self::Free, |part| Self::read(part, registry, inside));
            if shape != Self::Free {
                shapes.push(whole(Box::new(shape)));
            }
        };
        boxed(&schema.additional_properties, Self::Map);
        boxed(&schema.items, Self::Items);
        for part in &schema.all_of {
            shapes.push(Self::read(part, registry, inside));
        }
        shapes.retain(|shape| *shape != Self::Free);
        match shapes.len() {
            0 => Self::Free,
            1 => shapes.remove(0),
            _ => Self::All(shapes),
        }
    }
}
