"""What of charts/forgeone is made from the code: the CRD, the admission policies, the schema of values, the README."""
