"""The paper-doll world: what persons and garments there are, how they are drawn, and how they are read from pixels."""
