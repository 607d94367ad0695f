"""What native models share besides timm's layers."""
