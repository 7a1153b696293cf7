"""What the OpenAPI document says beyond the types of the routes: forms, errors, streams, pictures."""

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from starlette.routing import compile_path

from serve.http.errors import STATUSES
from serve.http.replies import EditCompleted, ErrorReply, PartialImage, Readiness

# The errors of every route that calls a stage, and of every route that reads a form.
ASKING = (401, 500, 503, 504)
READING = (400, 408, 413, 415, 429, *ASKING)
# A status that FastAPI documents for every route with parameters; here such errors have the status 400.
NEVER_SENT = "422"


class _FormSchema(GenerateJsonSchema):
    """Makes the schema of a form. A form has no null, so a field that may be None is one that may be left out."""

    def nullable_schema(self, schema: Any) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: Any) -> JsonSchemaValue:
        if schema["default"] is None:
            return self.generate_inner(schema["schema"])
        return super().default_schema(schema)


def form_document(form: type[BaseModel]) -> dict[str, Any]:
    """Return the part of the OpenAPI document for a route whose body is this multipart form, without references."""
    schema = form.model_json_schema(schema_generator=_FormSchema)
    files = [name for name, field in schema["properties"].items() if field.get("format") == "binary"]
    encoding = {name: {"contentType": "image/png, image/jpeg, image/webp"} for name in files}
    content = {"multipart/form-data": {"schema": schema, "encoding": encoding}}
    return {"requestBody": {"required": True, "content": content}}


def stream_document() -> dict[str, Any]:
    """Return the part of the OpenAPI document for the events of an edit with stream=true."""
    events = []
    for kind in (PartialImage, EditCompleted, ErrorReply):
        data = kind.model_json_schema(mode="serialization", ref_template="#/components/schemas/{model}")
        data.pop("$defs", None)
        events.append({"type": "string", "contentMediaType": "application/json", "contentSchema": data})
    event = {
        "type": "object",
        "required": ["event", "data"],
        "properties": {
            "event": {"enum": ["image_edit.partial_image", "image_edit.completed", "error"]},
            "data": {"anyOf": events},
        },
    }
    return {"text/event-stream": {"schema": {"type": "string"}, "itemSchema": event}}


class DocumentedAPI(FastAPI):
    """A FastAPI whose OpenAPI document lists only the statuses that its routes name."""

    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI document."""
        document = super().openapi()
        for path in document["paths"].values():
            for operation in path.values():
                operation["responses"].pop(NEVER_SENT, None)
        for name in ("HTTPValidationError", "ValidationError"):
            document["components"]["schemas"].pop(name, None)
        return document

    def methods_of(self, path: str) -> str:
        """Return the methods of an address as in the header Allow; "" for an address that is not in the document."""
        for template, operations in self.openapi()["paths"].items():
            if compile_path(template)[0].match(path):
                methods = [method.upper() for method in operations]
                return ", ".join(sorted([*methods, "HEAD"] if "GET" in methods else methods))
        return ""


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the `responses` of a route that may answer with these error statuses."""
    return {status: {"model": ErrorReply, "description": STATUSES[status][1]} for status in sorted(statuses)}


EDIT_RESPONSES = errors(*READING) | {
    200: {"content": stream_document(), "description": "The edited pictures, or with stream=true events."}
}
PICTURE_RESPONSES = errors(404, *ASKING) | {
    200: {"content": {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}}, "description": "The picture."}
}
READY_RESPONSES: dict[int | str, dict[str, Any]] = {
    503: {"model": Readiness, "description": "A stage does not answer."}
}
